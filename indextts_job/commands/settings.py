"""The run's configuration from a command line: a file, dotted keys, flags, and what the run itself records.

Weakest first: defaults, the run's record (only where no file is given), the old script's training file, flags, dotted
keys. A file is a whole configuration, so nothing is mixed into it from elsewhere.
"""

# ruff: noqa: PLC0415  # imports inside functions: only a run named by itself needs torch

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indextts_job import config, errors
from indextts_job.legacy.discovery import is_old_checkpoint
from indextts_job.legacy.training_file import settings_of
from indextts_job.redaction import STRUCK_OUT
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig

SHOWN_KEYS = 12
OF_THIS_ATTEMPT = ("resume.source", "resume.weights_only", "resume.accept", "run")
"""Never taken from a record: they say how an attempt starts, not what the run is."""
FOLDERS_SEARCHED = ("*/attempts", "*/*/attempts")


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration, and what the user should know about where it is from."""

    config: config.RunConfig
    notes: tuple[str, ...] = ()


def configuration(settings: Sequence[str], flag_keys: Mapping[str, object]) -> Configured:
    """The checked configuration.

    Args:
        settings: A file, and dotted keys with values.
        flag_keys: What flags say, by dotted key; weaker than `settings`.

    Raises:
        ConfigError: They make no configuration.
    """
    paths, overrides = config.split_settings(settings, os.path.exists)
    dotted = dict(overrides)
    if len(paths) > 1:
        raise errors.ConfigError(f"{len(paths)} configuration files given ({', '.join(paths)}), expected one.")
    layers = [("command line flags", flag_keys), ("command line", dotted)]
    given = {**flag_keys, **dotted}
    files.configure_object_stores(config.storage_config(given))
    if paths:
        return Configured(config.build_config(_run_file(paths[0]), paths[0], layers))
    notes = []
    path = str(given.get("inputs.model_config", ""))
    if path and (script := settings_of(files.read_yaml(path, "model configuration", "--config"))):
        layers.insert(0, (path, script))
        given = {**script, **given}
        shown = ", ".join(f"{key}={value}" for key, value in script.items())
        notes.append(f"{path} also holds training settings; used where no flag says otherwise: {shown}")
    if "data.train_manifests" in flag_keys and "resume.source" not in given:
        # The old trainer started afresh unless --resume said otherwise; a run of ours goes on in any case.
        layers.insert(0, ("flags of the old trainer", {"resume.source": "own"}))
    where, recorded = _record(given)
    if recorded:
        notes += _note_of(where, recorded, given)
    elif "data.train_manifests" not in given:
        _say_what_is_missing(where, str(given.get("resume.source", "auto")))
    return Configured(config.build_config(_nested(recorded), where or "command line", layers), tuple(notes))


def run_of(settings: Sequence[str], flag_keys: Mapping[str, object]) -> tuple[str, StorageConfig]:
    """The run that a command line names, and how to reach it; the rest of its configuration is not asked for.

    Args:
        settings: See `configuration`.
        flag_keys: See `configuration`.

    Raises:
        ConfigError: The file cannot be read, or a storage setting is wrong.
    """
    paths, overrides = config.split_settings(settings, os.path.exists)
    document = _run_file(paths[0]) if paths else {}
    in_file = config.flatten(document) if isinstance(document, Mapping) else {}
    given = {**in_file, **flag_keys, **dict(overrides)}
    storage = config.storage_config(given)
    files.configure_object_stores(storage)
    return str(given.get("run", "trained_ckpts")), storage


def _run_file(path: str) -> object:
    document = files.read_yaml(path, "run configuration", "the command line")
    if isinstance(document, Mapping) and "gpt" in document:
        raise errors.ConfigError(f"{path} describes the model, not a run. Give it with --config.")
    return document


def _record(given: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """Where a record was found, and its dotted keys; that of the run, else of what it is to go on from."""
    run = str(given.get("run", "trained_ckpts"))
    source = str(given.get("resume.source", "auto"))
    sources = [run]
    if source not in ("auto", "own", "none") and not is_old_checkpoint(source) and "data.train_manifests" not in given:
        sources.append(source)
    for where in sources:
        # The record needs the readers of checkpoints, and with them torch: not where nothing is recorded.
        if not files.exists(f"{where.rstrip('/')}/checkpoints") and not where.endswith(".json"):
            continue
        from indextts_job.resume.points import locate, recorded_config

        document = recorded_config(where)
        if document:
            flat = {key: v for key, v in config.flatten(document).items() if key not in OF_THIS_ATTEMPT}
            if where != run and "run" not in given:
                flat["run"] = locate(where)[0].storage.url  # named by nothing but --resume: that run goes on
            return where, flat
    return run, {}


def _note_of(where: str, recorded: Mapping[str, Any], given: Mapping[str, object]) -> list[str]:
    lost = [key for key, value in recorded.items() if key not in given and STRUCK_OUT in str(value)]
    if lost:
        raise errors.ConfigError(
            f"{where} records {', '.join(lost)} without the secret in it. Give it again: {lost[0]}=…"
        )
    defaults = config.flatten(config.RunConfig().to_json())
    taken = [f"{k}={v}" for k, v in recorded.items() if k not in given and k in defaults and v != defaults[k]]
    more = f" and {len(taken) - SHOWN_KEYS} more" if len(taken) > SHOWN_KEYS else ""
    return [f"not given, so as {where} records it: {', '.join(taken[:SHOWN_KEYS])}{more}"] if taken else []


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (document.setdefault(section, {}) if section else document)[name] = value
    return document


def _say_what_is_missing(run: str, source: str) -> None:
    """Nothing is recorded and no data is given: help whoever named another folder than that of the run, or none.

    A command that names nothing means the run of the default folder.
    """
    if source not in ("auto", "own", "none") and not is_old_checkpoint(source):
        raise errors.ConfigError(
            f"{source} holds no checkpoints to go on from, and no training data is given. Give the folder or URL of a "
            "run with checkpoints, or data with --train-manifest."
        )
    found = sorted({str(path.parent) for pattern in FOLDERS_SEARCHED for path in Path().glob(pattern)})
    if found and not files.exists(run):
        raise errors.ConfigError(
            f"{run}: no such run, and no training data is given. Runs below {Path.cwd()}: {', '.join(found[:10])}. "
            "Name one with --output-dir, or give data with --train-manifest."
        )
