"""Whether a run is complete already, as far as this machine can see: a Job for it would take a GPU for nothing."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from indextts_job.background import begin
from indextts_job.checkpoint.manifest import (
    MANIFESTS,
    OBJECTS,
    SHARED,
    CheckpointManifest,
    file_name,
    parse_file_name,
    parse_manifest,
)
from indextts_job.checkpoint.retention import FINAL, CheckpointName, current
from indextts_job.config import RunConfig, recorded_config
from indextts_job.redaction import redacted_values
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import result, settled

LOOK_S = 15.0
"""Longest look. The bucket may be for the pods of the cluster only."""
WITHOUT_EFFECT = ("run", "checkpoint", "hardware", "preemption", "report", "storage")
"""Keys and sections that do not say what a complete run is. With another length, other data, or another patience, say,
there may be something to train, or something to refuse; the trainer decides that."""


def complete_at(config: RunConfig, written: Mapping[str, object]) -> int | None:
    """The step at which the run of this configuration is complete.

    Args:
        config: The configuration.
        written: Places that its file names with environment variables, as they stand there, by dotted key.

    Returns:
        The step; None when it goes on, or when its storage cannot be read from here.
    """
    looked = begin(lambda: _final_step(config, recorded_config(config, written)), "look at the run")
    if not settled(looked, LOOK_S):
        return None
    # Whatever hinders this machine: the pods have a bucket and rights of their own.
    with contextlib.suppress(Exception):
        return result(looked)
    return None


def _final_step(config: RunConfig, document: Mapping[str, Any]) -> int | None:
    files.configure_object_stores(config.storage)
    storage = open_storage(config.run, replace(config.storage, retry_seconds=0))
    newest = _newest(storage)
    if newest is None or FINAL not in newest.tags:
        return None
    key = f"{MANIFESTS}/{file_name(newest)}"
    manifest = parse_manifest(storage.read(key), key)
    same = _decisive(manifest.values.config) == _decisive(redacted_values(dict(document)))
    return newest.step if same and _is_there(storage, manifest) else None


def _newest(storage: RunStorage) -> CheckpointName | None:
    found = (parse_file_name(name) for name in storage.list(MANIFESTS))
    return next(iter(current(name for name in found if name)), None)


def _is_there(storage: RunStorage, manifest: CheckpointManifest) -> bool:
    """Whether all objects of a checkpoint are there. An attempt writes others again, or says which are lost."""
    # Not by the store of checkpoints, which imports torch: a launcher has no second for it.
    listed = ((folder, storage.list(folder)) for folder in (OBJECTS, SHARED))
    there = {f"{folder}/{file}": info.size_bytes for folder, found in listed for file, info in found.items()}
    return all(there.get(stored.key) == stored.size_bytes for stored in manifest.objects.values())


def _decisive(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in WITHOUT_EFFECT}
