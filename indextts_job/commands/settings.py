"""Composes the run's configuration from a command line: a file, dotted keys, flags, and the record of the run.

Precedence, lowest first: defaults, the run's record (only without a file), the training file of the old script, flags,
dotted keys. A file is a whole configuration, so nothing of a record is mixed into it.
"""

# ruff: noqa: PLC0415  # imports inside functions: only a run named by itself needs torch

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indextts_job import config, errors
from indextts_job.commands.command_keys import without_commands
from indextts_job.commands.run_file import read_run_file
from indextts_job.legacy.discovery import is_old_checkpoint
from indextts_job.legacy.training_file import settings_of
from indextts_job.redaction import STRUCK_OUT
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.variables import has_variables

SHOWN_KEYS = 12
"""Settings that a note lists by name: as many as fit a few lines."""
OF_THIS_ATTEMPT = ("resume.source", "resume.weights_only", "resume.accept", "run")
"""Keys that are never taken from a record: they describe the start of an attempt, not the run."""
FOLDERS_SEARCHED = ("*/attempts", "*/*/attempts")
"""Patterns of runs near the working directory. Two levels, because a whole disk would take minutes."""


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration, and notes for the user about its origin."""

    config: config.RunConfig
    notes: tuple[str, ...] = ()
    written: Mapping[str, object] = field(default_factory=dict)
    """Places that a file names with variables, as they stand there, by dotted key."""


def configuration(settings: Sequence[str], flag_keys: Mapping[str, object]) -> Configured:
    """The checked configuration.

    Args:
        settings: At most one file, and dotted keys with values.
        flag_keys: Values of flags, by dotted key; `settings` override them.

    Raises:
        ConfigError: They do not make a valid configuration.
    """
    paths, overrides = config.split_settings(settings, os.path.exists)
    # Two files would need a rule which one wins; overrides already have one.
    if len(paths) > 1:
        raise errors.ConfigError(
            f"{len(paths)} configuration files given ({', '.join(paths)}), expected one. Settings are key=value."
        )
    dotted = dict(overrides)
    layers = [("command line flags", flag_keys), ("command line", dotted)]
    given = {**flag_keys, **dotted}
    # The file or the record may lie in a bucket that only the command line says how to reach.
    files.configure_object_stores(config.storage_config(given))
    if paths:
        file = read_run_file(paths[0])
        # What the command line overrides is not what the file says.
        written = {key: value for key, value in file.written.items() if key not in given}
        return Configured(config.build_config(file.document, paths[0], layers), written=written)
    return _without_file(given, layers, from_old_flags="data.train_manifests" in flag_keys)


def _without_file(
    given: Mapping[str, object], layers: list[tuple[str, Mapping[str, object]]], *, from_old_flags: bool
) -> Configured:
    """A configuration from the command line alone, completed by the record of the run."""
    path, script = _training_settings(given)
    notes = []
    if script:
        layers.insert(0, (path, script))
        given = {**script, **given}
        shown = ", ".join(f"{key}={value}" for key, value in script.items())
        notes.append(f"{path} also holds training settings; used where no flag says otherwise: {shown}")
    if from_old_flags and "resume.source" not in given:
        # The old trainer started afresh unless --resume said otherwise, so its files are not taken over unasked. A run
        # of this program resumes in any case.
        layers.insert(0, ("flags of the old trainer", {"resume.source": "own"}))
    where, recorded = _record(given)
    recorded, left_out = without_commands(where, recorded)
    notes += left_out
    if recorded:
        notes += _note_of(where, recorded, given)
    elif not _names_data(given):
        # The misspelt key first: `rum=DIR` would otherwise be told only that the default folder holds no run.
        config.overridden(config.RunConfig(), layers)
        _say_what_is_missing(where, str(given.get("resume.source", "auto")))
    return Configured(config.build_config(_nested(recorded), where or "command line", layers), tuple(notes))


def _training_settings(given: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """Path of the model's config.yaml, and the training settings in it, which the old script also kept there."""
    path = str(given.get("inputs.model_config", ""))
    return path, settings_of(files.read_yaml(path, "model configuration", "--config")) if path else {}


def run_of(settings: Sequence[str], flag_keys: Mapping[str, object]) -> tuple[str, StorageConfig]:
    """The run that a command line names, and its storage settings; the rest of the configuration may be missing.

    Args:
        settings: As in `configuration`.
        flag_keys: As in `configuration`.

    Raises:
        ConfigError: The file cannot be read, or a storage setting is wrong.
    """
    paths, overrides = config.split_settings(settings, os.path.exists)
    # Not checked: this command only looks at a run, and a wrong key elsewhere must not prevent that.
    in_file = config.flatten(read_run_file(paths[0]).document) if paths else {}
    given = {**in_file, **flag_keys, **dict(overrides)}
    storage = config.storage_config(given)
    files.configure_object_stores(storage)
    return str(given.get("run", "trained_ckpts")), storage


def _record(given: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """The place of a recorded configuration, and its dotted keys: that of the run, else that of its origin."""
    run = str(given.get("run", "trained_ckpts"))
    for where in _recorded_at(run, given):
        if document := _recorded(where):
            flat = {key: value for key, value in config.flatten(document).items() if key not in OF_THIS_ATTEMPT}
            if where != run and "run" not in given:
                flat["run"] = _run_at(where)  # only --resume names a run, so that run is resumed
            return where, flat
    return run, {}


def _recorded_at(run: str, given: Mapping[str, object]) -> list[str]:
    """Places where a record may be: the run, and the argument of `--resume` if no data is given."""
    source = str(given.get("resume.source", "auto"))
    if _names_data(given) or _names_no_run(source):
        return [run]
    return [run, source]


def _names_data(given: Mapping[str, object]) -> bool:
    return "data.train_manifests" in given or "data.datasets" in given


def _names_no_run(source: str) -> bool:
    return source in ("auto", "own", "none") or is_old_checkpoint(source)


def _recorded(where: str) -> dict[str, Any] | None:
    # Reading a checkpoint imports torch, which takes seconds, so it is avoided where there can be no record.
    if not files.exists(f"{where.rstrip('/')}/checkpoints") and not where.endswith(".json"):
        return None
    from indextts_job.resume.points import recorded_config

    return recorded_config(where)


def _run_at(where: str) -> str:
    from indextts_job.resume.points import locate

    return locate(where)[0].storage.url


def _note_of(where: str, recorded: Mapping[str, Any], given: Mapping[str, object]) -> list[str]:
    """One line about the values taken from a record; nothing when all are given or defaults."""
    taken = {key: value for key, value in recorded.items() if key not in given}
    _demand_secrets(where, taken)
    defaults = config.flatten(config.RunConfig().to_json())
    # Defaults are left out: the line is for what differs from a run that was never configured.
    shown = [f"{key}={value}" for key, value in taken.items() if key in defaults and value != defaults[key]]
    if not shown:
        return []
    more = f" and {len(shown) - SHOWN_KEYS} more" if len(shown) > SHOWN_KEYS else ""
    return [f"not given, so as {where} records it: {', '.join(shown[:SHOWN_KEYS])}{more}"]


def _demand_secrets(where: str, taken: Mapping[str, Any]) -> None:
    """Refuse recorded values whose secret was removed before they were written."""
    unknown = [key for key, value in taken.items() if has_variables(value)]
    if unknown:
        raise errors.ConfigError(
            f"{where} records {unknown[0]} with variables ({taken[unknown[0]]}), which are replaced in files of this "
            f"machine only. Give the run.yaml again, or {unknown[0]}=…"
        )
    lost = [key for key, value in taken.items() if STRUCK_OUT in str(value)]
    if lost:
        raise errors.ConfigError(
            f"{where} records {', '.join(lost)} without the secret in it. Give it again: {lost[0]}=…"
        )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return document


def _say_what_is_missing(run: str, source: str) -> None:
    """Raise an error for a command without data and without a record; it names runs near the working directory.

    A command that names no run means the one of the default folder.
    """
    if not _names_no_run(source):
        raise errors.ConfigError(
            f"{source} holds no checkpoints to go on from, and no training data is given. Give the folder or URL of a "
            "run with checkpoints, or data with --train-manifest."
        )
    # Runs are recognised by their folder of attempts, which exists before the first checkpoint.
    found = sorted({str(path.parent) for pattern in FOLDERS_SEARCHED for path in Path().glob(pattern)})
    if found and not files.exists(run):
        raise errors.ConfigError(
            f"{run}: no such run, and no training data is given. Runs below {Path.cwd()}: {', '.join(found[:10])}. "
            "Name one with --output-dir, or give data with --train-manifest."
        )
