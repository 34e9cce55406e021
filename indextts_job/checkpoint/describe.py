"""Checkpoints for people and programs: rows of a list, and everything about one of them."""

from collections.abc import Mapping
from typing import Any

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, file_name
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.retention import BEST, FINAL
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import DataError

SUMMARY = "summary.json"
"""File of the run that says where it stands; written after every checkpoint."""


def rows(store: CheckpointStore, *, verify: bool) -> list[dict[str, Any]]:
    """One row per checkpoint, newest first.

    Args:
        store: The run.
        verify: Read every object and compare hashes; else `verified` is null.
    """
    current = set(retention.current(store.names()))
    result = []
    for name in reversed(store.names()):
        row: dict[str, Any] = {"step": name.step, "attempt": name.attempt, "tags": list(name.tags)}
        row |= {"name": file_name(name), "superseded": name not in current}
        try:
            manifest = store.manifest(name)
            row |= _summary(manifest)
            row["verified"] = verified(store, manifest) if verify else None
        except DataError as error:
            row |= {"verified": False, "problem": str(error)}
        result.append(row)
    return result


def verified(store: CheckpointStore, manifest: CheckpointManifest) -> bool:
    """Whether every byte of a checkpoint is there and unchanged."""
    try:
        store.verify(manifest)
    except DamagedCheckpointError:
        return False
    return True


def _summary(manifest: CheckpointManifest) -> dict[str, Any]:
    values = manifest.values
    validations = values["history"]["validations"]
    here = validations[-1] if validations and validations[-1]["step"] == manifest.name.step else None
    return {
        "epoch": epoch(manifest),
        "validation": here["losses"] if here else None,
        "bytes": manifest.size_bytes,
        "created": manifest.created,
    }


def epoch(manifest: CheckpointManifest) -> float:
    """Epochs done, from samples: 1.5 is the middle of the second."""
    return float(manifest.values["history"]["samples"] / manifest.values["order"]["num_samples"])


def details(manifest: CheckpointManifest) -> Mapping[str, Any]:
    """Everything that a checkpoint records, with what follows from it."""
    total = manifest.values["total_steps"]
    return {
        "name": file_name(manifest.name),
        "step": manifest.name.step,
        "total_steps": total,
        "epoch": epoch(manifest),
        "attempt": manifest.name.attempt,
        "tags": list(manifest.name.tags),
        "created": manifest.created,
        "bytes": manifest.size_bytes,
        "tensors": len(manifest.tensors),
        "objects": len(manifest.objects),
        **manifest.values,
    }


def summary(store: CheckpointStore) -> dict[str, Any]:
    """Where a run stands, for people and programs that read one small file: `summary.json` of the run."""
    newest = store.newest()
    if newest is None:
        return {"checkpoints": []}
    history, values = newest.values["history"], newest.values
    best = history["best"]
    return {
        "step": newest.name.step,
        "total_steps": values["total_steps"],
        "epoch": epoch(newest),
        "samples": history["samples"],
        "complete": FINAL in newest.name.tags,
        "attempt": newest.name.attempt,
        "resumed": newest.name.attempt_start > 0,
        "attempt_started_at_step": newest.name.attempt_start,
        "attempt_started_at_epoch": newest.name.attempt_start
        * values["order"]["global_batch_samples"]
        / values["order"]["num_samples"],
        "best_validation": best,
        "last_validation": history["validations"][-1] if history["validations"] else None,
        "validations_without_improvement": history["validations_without_improvement"],
        "overfitting_since_step": history.get("overfitting_since"),
        "training_type": _training_type(values["vocabulary"]),
        "trained_parameters": values["parameters"]["trained"],
        "train_loss_since_last_line": _train_loss(history),
        "updated": newest.created,
        "checkpoints": rows(store, verify=False),
    }


def _train_loss(history: Mapping[str, Any]) -> float | None:
    """Mean weighted training loss since the last train line; right behind one, that of the line."""
    interval, line = history["interval"], history.get("last_line")
    if interval["steps"]:
        return float(interval["total"] / interval["steps"])
    return float(line["total"]) if line else None


def _training_type(vocabulary: Mapping[str, Any]) -> str:
    new_rows = vocabulary["pieces"] - vocabulary["base_pieces"]
    return f"{vocabulary['base_pieces']} base rows frozen, {new_rows} new rows train" if new_rows else "all rows train"


def log_entry(manifest: CheckpointManifest, url: str) -> dict[str, Any]:
    """A line about a checkpoint in the log of all that there ever were.

    Args:
        manifest: The checkpoint.
        url: Of the run.
    """
    history = manifest.values["history"]
    validations = history["validations"]
    validated = validations[-1] if validations else None
    return {
        "step": manifest.name.step,
        "epoch": epoch(manifest),
        "loss": _train_loss(history),
        "validation_loss": validated["losses"]["total"] if validated else None,
        "validated_at_step": validated["step"] if validated else None,
        "checkpoint_path": f"{url}/{MANIFESTS}/{file_name(manifest.name)}",
        "is_best": BEST in manifest.name.tags,
        "is_final": FINAL in manifest.name.tags,
        "attempt": manifest.name.attempt,
        "timestamp": manifest.created,
    }
