"""Whether a run is complete already, as far as this machine can see: a Job for it would take a GPU for nothing."""

import contextlib
from dataclasses import replace
from typing import Any

from indextts_job.background import begin
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, file_name, parse_file_name, parse_manifest
from indextts_job.checkpoint.retention import FINAL, current
from indextts_job.config import RunConfig
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.waiting import result, settled

LOOK_S = 15.0
"""Longest look. The bucket may be for the pods of the cluster only."""
DECISIVE = ("schedule", "data", "recipe", "resume")
"""Sections that say what a complete run is. With another length, or other data, there is something to train."""


def complete_at(config: RunConfig) -> int | None:
    """The step at which the run of this configuration is complete.

    Returns:
        The step; None when it goes on, or when its storage cannot be read from here.
    """
    looked = begin(lambda: _final_step(config), "look at the run")
    if not settled(looked, LOOK_S):
        return None
    with contextlib.suppress(
        Exception
    ):  # whatever hinders this machine: the pods have a bucket and rights of their own
        return result(looked)
    return None


def _final_step(config: RunConfig) -> int | None:
    files.configure_object_stores(config.storage)
    storage = open_storage(config.run, replace(config.storage, retry_seconds=0))
    found = (parse_file_name(name) for name in storage.list(MANIFESTS))
    newest = next(iter(current(name for name in found if name)), None)
    if newest is None or FINAL not in newest.tags:
        return None
    key = f"{MANIFESTS}/{file_name(newest)}"
    manifest = parse_manifest(storage.read(key), key)
    return newest.step if _same(manifest, config.to_json()) else None


def _same(manifest: CheckpointManifest, document: dict[str, Any]) -> bool:
    return all(manifest.values.config_section(name) == document[name] for name in DECISIVE)
