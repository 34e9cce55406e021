"""The run's configuration in a launcher: read and checked before the job is queued."""

import os
import stat

from indextts_job.config import RunConfig, build_config, split_settings
from indextts_job.errors import ConfigError
from indextts_job.prepare.config import PrepareConfig, prepare_config
from indextts_job.storage.urls import local_path
from indextts_job.strict_yaml import LARGEST_BYTES, parse_yaml
from indextts_job.variables import with_variables

from .job import Job

ADVICE = "Give the run's configuration: … -- RUN.yaml"


def config_argument(job: Job) -> str:
    """The configuration file among the arguments of the command; empty if there is none."""
    return _split(job)[0]


def read_config(job: Job) -> tuple[str, RunConfig]:
    """Read the job's local configuration file.

    Returns:
        The text of the file, and the configuration with the job's `key=value` settings applied.

    Raises:
        ConfigError: The file is missing, or it is no valid configuration.
    """
    path, overrides = _split(job)
    text = _read_text(path)
    document = with_variables(parse_yaml(text, path), os.environ, path)
    return text, build_config(document, path, [("command line", dict(overrides))])


def read_prepare_config(job: Job) -> tuple[str, PrepareConfig]:
    """The same of the configuration of a preparation."""
    path, overrides = _split(job)
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


def _split(job: Job) -> tuple[str, list[tuple[str, object]]]:
    """The path of the configuration (empty if there is none) and the `key=value` settings."""
    # Options of `indextts-job train` begin with a dash and are neither.
    positional = [argument for argument in job.arguments if not argument.startswith("-")]
    paths, overrides = split_settings(positional, os.path.exists)
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
