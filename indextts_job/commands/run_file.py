"""Reads a run.yaml, with the environment variables in it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from indextts_job import config, errors
from indextts_job.commands.command_keys import demand_no_commands
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.variables import has_variables, with_variables, written_places


@dataclass(frozen=True, slots=True)
class RunFile:
    """The content of a run.yaml."""

    document: Mapping[str, Any]
    """With variables replaced."""
    written: Mapping[str, object] = field(default_factory=dict)
    """Places as they stand in the file, by dotted key: those with variables."""


def read_run_file(path: str, key: str = "the command line", what: str = "run configuration") -> RunFile:
    """Read a run.yaml, or another file of settings.

    Args:
        path: Path or URL.
        key: Where the path comes from, for messages.
        what: What it is, for messages.

    Raises:
        ConfigError: It is not there, no mapping, a model's config.yaml, or it names a variable that is not set.
    """
    document = files.read_yaml(path, what, key)
    if document is None:
        return RunFile({})
    if not isinstance(document, Mapping):
        raise errors.ConfigError(f"{path}: holds a {type(document).__name__}, expected keys and values.")
    if "gpt" in document:
        raise errors.ConfigError(f"{path} describes the model, not a run. Give it with --config.")
    if files.is_local(path):
        return RunFile(with_variables(document, os.environ, path), written_places(config.flatten(document)))
    if any(map(has_variables, document.values())):
        raise errors.ConfigError(
            f"{redacted(path)} holds variables (${{…}}), which are replaced in files of this machine only: whoever may "
            "write there could read this environment. Copy it here first, or write the values out."
        )
    demand_no_commands(path, document)
    return RunFile(document)
