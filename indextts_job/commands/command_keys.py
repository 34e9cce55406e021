"""Keys whose values are run as programs: taken from a file of this machine or from the command line, and nowhere else.

Whoever may write into a run or a bucket could otherwise run programs on the machines that read it.
"""

from collections.abc import Mapping
from typing import Any

from indextts_job.config import flatten
from indextts_job.errors import ConfigError
from indextts_job.redaction import redacted

COMMAND_KEYS = ("validation.command", "report.command")


def without_commands(where: str, recorded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recorded configuration without commands, and a note for each that was left out.

    Args:
        where: The place of the record, for the note.
        recorded: Values by dotted key.
    """
    kept = {key: value for key, value in recorded.items() if key not in COMMAND_KEYS}
    notes = [
        f"{key} of the record of {where} is not run: a command comes from a file of this machine or from the command "
        "line. Give it again if you want it"
        for key in COMMAND_KEYS
        if recorded.get(key)
    ]
    return kept, notes


def demand_no_commands(path: str, document: Mapping[str, Any]) -> None:
    """Refuse a configuration from elsewhere that holds commands.

    Raises:
        ConfigError: It does; names the keys.
    """
    flat = flatten(document)
    found = [key for key in COMMAND_KEYS if flat.get(key)]
    if found:
        raise ConfigError(
            f"{redacted(path)} sets {', '.join(found)}, which is run on this machine: commands are taken from files of "
            "this machine only. Copy it here first, or give the command on the command line."
        )
