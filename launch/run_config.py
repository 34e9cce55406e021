"""The run's configuration as a launcher sees it: read and checked before anything waits in a queue."""

import os
import stat

from indextts_job.config import RunConfig, build_config, split_settings
from indextts_job.errors import ConfigError
from indextts_job.storage.urls import local_path
from indextts_job.strict_yaml import LARGEST_BYTES, parse_yaml
from launch.job import Job


def config_argument(job: Job) -> str:
    """The configuration file among the arguments of `indextts-job train`; empty if there is none."""
    paths, _ = split_settings(_settings(job), os.path.exists)
    return next(iter(paths), "")


def read_config(job: Job) -> tuple[str, RunConfig]:
    """The text of the job's local configuration file, and what it means with the job's settings.

    Raises:
        ConfigError: No such file, or a wrong one.
    """
    paths, overrides = split_settings(_settings(job), os.path.exists)
    path = next(iter(paths), "")
    advice = "Give the run's configuration: … -- RUN.yaml"
    try:
        file = local_path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise ConfigError(f"{path or 'no configuration'}: no regular file. {advice}")
        if status.st_size > LARGEST_BYTES:
            raise ConfigError(f"{path} has {status.st_size} bytes, which no configuration has. {advice}")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. {advice}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no YAML: not UTF-8 text ({error}).") from error
    return text, build_config(parse_yaml(text, path), path, [("command line", dict(overrides))])


def _settings(job: Job) -> list[str]:
    return [argument for argument in job.arguments if not argument.startswith("-")]
