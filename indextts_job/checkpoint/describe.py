"""Checkpoints for people and programs: rows of a list, and everything about one of them."""

from typing import Any

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, file_name
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.retention import BEST, FINAL, CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.values import VocabularyRecord
from indextts_job.errors import DataError
from indextts_job.parsing import plain

SUMMARY = "summary.json"
"""File of the run that says where it stands; written after every checkpoint."""


def rows(store: CheckpointStore, *, verify: bool) -> list[dict[str, Any]]:
    """One row per checkpoint, newest first.

    Args:
        store: The run.
        verify: Read every object and compare hashes; else `verified` is null.
    """
    names = store.names()
    current = set(retention.current(names))
    return [
        {
            "step": name.step,
            "attempt": name.attempt,
            "tags": list(name.tags),
            "name": file_name(name),
            "superseded": name not in current,
            **_content_of(store, name, verify=verify),
        }
        for name in reversed(names)
    ]


def _content_of(store: CheckpointStore, name: CheckpointName, *, verify: bool) -> dict[str, Any]:
    """The part of a row that needs the manifest."""
    try:
        manifest = store.manifest(name)
        return {**_summary(manifest), "verified": verified(store, manifest) if verify else None}
    except DataError as error:
        # A list must show the other checkpoints too, so a damaged manifest is a row and not an error.
        return {"verified": False, "problem": str(error)}


def verified(store: CheckpointStore, manifest: CheckpointManifest) -> bool:
    """Whether every byte of a checkpoint is there and unchanged."""
    try:
        store.verify(manifest)
    except DamagedCheckpointError:
        return False
    return True


def _summary(manifest: CheckpointManifest) -> dict[str, Any]:
    history = manifest.values.history
    # The history keeps older validations as well. Only one of this very step describes these weights.
    here = history.validations[-1] if history.validated_at(manifest.name.step) else None
    return {
        "epoch": manifest.values.epoch,
        "validation": plain(here.losses) if here else None,
        "bytes": manifest.size_bytes,
        "created": manifest.created,
    }


def details(manifest: CheckpointManifest) -> dict[str, Any]:
    """Everything that a checkpoint records, with what follows from it."""
    return {
        "name": file_name(manifest.name),
        "step": manifest.name.step,
        "total_steps": manifest.values.total_steps,
        "epoch": manifest.values.epoch,
        "attempt": manifest.name.attempt,
        "tags": list(manifest.name.tags),
        "created": manifest.created,
        "bytes": manifest.size_bytes,
        "tensors": len(manifest.tensors),
        "objects": len(manifest.objects),
        **manifest.values.to_json(),
    }


def summary(store: CheckpointStore) -> dict[str, Any]:
    """The content of `summary.json`: where a run stands, in one small file for people and programs."""
    newest = store.newest()
    if newest is None:
        return {"checkpoints": []}
    values, history, started_at = newest.values, newest.values.history, newest.name.attempt_start
    return {
        "step": newest.name.step,
        "total_steps": values.total_steps,
        "epoch": values.epoch,
        "samples": history.samples,
        "complete": FINAL in newest.name.tags,
        "attempt": newest.name.attempt,
        "resumed": started_at > 0,
        "attempt_started_at_step": started_at,
        # By the order of samples instead of the history, which holds the count of the newest step only.
        "attempt_started_at_epoch": started_at * values.order.global_batch_samples / values.order.num_samples,
        "best_validation": plain(history.best),
        "last_validation": plain(history.validations[-1]) if history.validations else None,
        "validations_without_improvement": history.validations_without_improvement,
        "overfitting_since_step": history.overfitting_since,
        "training_type": _training_type(values.vocabulary),
        "trained_parameters": values.parameters.trained,
        "train_loss_since_last_line": history.train_loss,
        "updated": newest.created,
        # Written after every checkpoint, so it must not read gigabytes.
        "checkpoints": rows(store, verify=False),
    }


def _training_type(vocabulary: VocabularyRecord) -> str:
    if not vocabulary.new_rows:
        return "all rows train"
    return f"{vocabulary.base_pieces} base rows frozen, {vocabulary.new_rows} new rows train"


def log_entry(manifest: CheckpointManifest, url: str) -> dict[str, Any]:
    """One line of `checkpoint_log.json`, which lists every checkpoint that ever existed.

    Args:
        manifest: The checkpoint.
        url: URL of the run.
    """
    history = manifest.values.history
    validated = history.validations[-1] if history.validations else None
    return {
        "step": manifest.name.step,
        "epoch": manifest.values.epoch,
        "loss": history.train_loss,
        "validation_loss": validated.losses.total if validated else None,
        "validated_at_step": validated.step if validated else None,
        "checkpoint_path": f"{url}/{MANIFESTS}/{file_name(manifest.name)}",
        "is_best": BEST in manifest.name.tags,
        "is_final": FINAL in manifest.name.tags,
        "attempt": manifest.name.attempt,
        "timestamp": manifest.created,
    }
