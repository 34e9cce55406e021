"""The run's configuration in a launcher: read and checked before the job is queued."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from indextts_job.commands.train import settings_in
from indextts_job.config import RunConfig, build_config, flatten, split_settings
from indextts_job.errors import ConfigError
from indextts_job.prepare.config import PrepareConfig, prepare_config
from indextts_job.storage.urls import local_path
from indextts_job.strict_yaml import LARGEST_BYTES, parse_yaml
from indextts_job.variables import with_variables, written_places

from .job import Job

ADVICE = "Give the run's configuration: … -- RUN.yaml"


@dataclass(frozen=True, slots=True)
class JobConfig:
    """A local configuration of a training, and what the job's arguments make of it."""

    text: str
    """As it stands in the file."""
    config: RunConfig
    """With the flags and the `key=value` settings of the job."""
    written: Mapping[str, object] = field(default_factory=dict)
    """Places with environment variables as they stand in the file, by dotted key."""


def config_argument(job: Job) -> str:
    """The configuration file among the arguments of the command; empty if there is none.

    Raises:
        ConfigError: The command would refuse the arguments.
    """
    settings, _ = _arguments(job)
    return _split(settings)[0]


def read_config(job: Job) -> JobConfig:
    """Read the job's local configuration file.

    Raises:
        ConfigError: The file is missing, or it is no valid configuration.
    """
    settings, flag_keys = _arguments(job)
    path, overrides = _split(settings)
    text = _read_text(path)
    document = parse_yaml(text, path)
    layers = [("command line flags", flag_keys), ("command line", dict(overrides))]
    config = build_config(with_variables(document, os.environ, path), path, layers)
    given = {**flag_keys, **dict(overrides)}
    places = written_places(flatten(document)) if isinstance(document, Mapping) else {}
    return JobConfig(text, config, {key: value for key, value in places.items() if key not in given})


def read_prepare_config(job: Job) -> tuple[str, PrepareConfig]:
    """The text of the configuration of a preparation, and the configuration."""
    settings, _ = _arguments(job)
    path, overrides = _split(settings)
    text = _read_text(path)
    return text, prepare_config(with_variables(parse_yaml(text, path), os.environ, path), path, overrides)


def check_config(job: Job) -> None:
    """Read and check the job's local configuration file.

    Raises:
        ConfigError: The file is missing, or it is no valid configuration of the job's command.
    """
    if job.command == "prepare":
        read_prepare_config(job)
    else:
        read_config(job)


def _arguments(job: Job) -> tuple[list[str], dict[str, object]]:
    """Files and `key=value` settings, and the keys that flags set."""
    if job.command == "train":
        settings, keys = settings_in(job.arguments)
        _demand_one(settings)
        return settings, keys
    # Options of `prepare` are neither, and set no keys.
    return [argument for argument in job.arguments if not argument.startswith("-")], {}


def _demand_one(settings: list[str]) -> None:
    paths, _ = split_settings(settings, os.path.exists)
    if len(paths) > 1:
        raise ConfigError(f"{len(paths)} configuration files given ({', '.join(paths)}), expected one.")


def _split(settings: list[str]) -> tuple[str, list[tuple[str, object]]]:
    """The path of the configuration (empty if there is none) and the `key=value` settings."""
    paths, overrides = split_settings(settings, os.path.exists)
    return next(iter(paths), ""), overrides


def _read_text(path: str) -> str:
    try:
        file = local_path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise ConfigError(f"{path or 'no configuration'}: no regular file. {ADVICE}")
        # A checkpoint or data file given by mistake is refused before it is read into memory.
        if status.st_size > LARGEST_BYTES:
            raise ConfigError(f"{path} has {status.st_size} bytes, which no configuration has. {ADVICE}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. {ADVICE}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no YAML: not UTF-8 text ({error}).") from error
