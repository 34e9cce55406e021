"""The run's configuration as a launcher sees it: read and checked before anything waits in a queue."""

from pathlib import Path

import yaml

from indextts_job.config import RunConfig, build_config, parse_override
from indextts_job.errors import ConfigError
from launch.job import Job


def config_argument(job: Job) -> str:
    """The configuration file among the arguments of `indextts-job train`; empty if there is none."""
    return next((argument for argument in job.arguments if not argument.startswith("-") and "=" not in argument), "")


def read_config(job: Job) -> tuple[str, RunConfig]:
    """The text of the job's local configuration file, and what it means with the job's settings.

    Raises:
        ConfigError: No such file, or a wrong one.
    """
    path = config_argument(job)
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give the run's configuration: … -- RUN.yaml") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    settings = [argument for argument in job.arguments if "=" in argument and not argument.startswith("-")]
    overrides = dict(parse_override(argument) for argument in settings)
    return text, build_config(document, path, [("command line", overrides)])
