"""The run that a Job trains, from its configuration: every path in it must be a URL that a pod can reach."""

import re
from collections.abc import Iterator
from dataclasses import asdict

from indextts_job.config import RunConfig
from indextts_job.data.named_sources import training_arguments
from indextts_job.errors import ConfigError, findings_message
from indextts_job.prepare.config import PrepareConfig

from ..job import Job
from ..run_config import config_argument, read_config, read_prepare_config

LONGEST_NAME = 52
"""A label has at most 63 characters; the rest is left for the index and the random suffix of a pod's name."""


def remote_config(job: Job) -> tuple[str, str]:
    """The text of the job's configuration, and the URL of its run; checked before the job is submitted.

    Raises:
        ConfigError: The file is missing or wrong, or it names a path on the pod's own disk.
    """
    path = config_argument(job)
    if not path:
        raise ConfigError("no configuration given. Add one: indextts-launch kubernetes submit --image I -- run.yaml")
    if "://" in path:
        raise ConfigError(f"{path}: a Job keeps its own copy of the configuration; give a local file.")
    text, place, paths = _read(job)
    local = [f"{key}: {value or 'not given'}" for key, value in paths if "://" not in value]
    if local:
        headline = f"{path} names paths on the disk of a pod, which starts empty and is lost with it"
        raise ConfigError(findings_message(headline, local, "Give URLs: s3://…, gs://…, abfs://…"))
    return text, place


def _read(job: Job) -> tuple[str, str, list[tuple[str, str]]]:
    """The text of the job's configuration, the URL of what it makes, and its keys that hold paths."""
    if job.command == "prepare":
        text, preparation = read_prepare_config(job)
        return text, preparation.output, list(_paths_of_preparation(preparation))
    file = read_config(job)
    return file.text, file.config.run, list(_paths(file.config))


def _paths_of_preparation(config: PrepareConfig) -> Iterator[tuple[str, str]]:
    yield "output", config.output
    for path in config.manifests:
        yield "manifests", path
    for section in ("model", "encoders"):
        for key, value in asdict(getattr(config, section)).items():
            if isinstance(value, str) and (value or key != "campplus"):
                yield f"{section}.{key}", value
    if config.audio.folder:
        yield "audio.folder", config.audio.folder


def _paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The configuration's keys that hold paths, each with its value."""
    yield "run", config.run
    yield "inputs.model_config", config.inputs.model_config
    yield "inputs.base_checkpoint", config.inputs.base_checkpoint
    yield "inputs.tokenizer", config.inputs.tokenizer
    for path in training_arguments(config.data):
        yield "data.datasets" if config.data.datasets else "data.train_manifests", path
    for path in config.data.validation_manifests:
        yield "data.validation_manifests", path


def name_of_run(run: str) -> str:
    """A Job's name from the run's URL, so that submitting the same run again finds the same Job."""
    last = run.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:LONGEST_NAME].rstrip("-") or "indextts"
