"""Checkpoints for people and programs: rows of a list, and everything about one of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.history import Losses, Validation
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, file_name, parse_file_name
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.retention import BEST, FINAL, CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import DataError
from indextts_job.parsing import plain

SCHEMA = 1
"""Version of `summary.json` and of `status --json`; it rises when a key goes or changes its meaning (docs/json.md)."""
SUMMARY = "summary.json"
"""File of the run that says where it stands; written after every checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One checkpoint in a list. What needs its manifest is None where that cannot be read."""

    name: CheckpointName
    superseded: bool
    """Whether a newer line of attempts has replaced it."""
    manifest: CheckpointManifest | None = None
    verified: bool | None = None
    """Whether every byte is unchanged; None without a verification."""
    problem: str = ""
    """Why the manifest cannot be read."""

    @property
    def validation(self) -> Losses | None:
        """Losses of the validation at its step, if there was one."""
        history = self.manifest.values.history if self.manifest else None
        return history.validations[-1].losses if history and history.validated_at(self.name.step) else None

    def to_json(self) -> dict[str, Any]:
        """The row for programs."""
        return {
            "step": self.name.step,
            "attempt": self.name.attempt,
            "tags": list(self.name.tags),
            "name": file_name(self.name),
            "superseded": self.superseded,
            **self._of_manifest(),
            "verified": self.verified,
            **({"problem": self.problem} if self.problem else {}),
        }

    def _of_manifest(self) -> dict[str, Any]:
        if self.manifest is None:
            return {}
        return {
            "epoch": self.manifest.values.epoch,
            "validation": plain(self.validation),
            "bytes": self.manifest.size_bytes,
            "created": self.manifest.created,
        }


def rows(store: CheckpointStore, *, verify: bool) -> list[Row]:
    """One row per checkpoint, newest first.

    Args:
        verify: Read every object and compare hashes.
    """
    names = store.names()
    current = set(retention.current(names))
    return [_row(store, name, superseded=name not in current, verify=verify) for name in reversed(names)]


def _row(store: CheckpointStore, name: CheckpointName, *, superseded: bool, verify: bool) -> Row:
    try:
        manifest = store.manifest(name)
        whole = verified(store, manifest) if verify else None
        return Row(name=name, superseded=superseded, manifest=manifest, verified=whole)
    except DataError as error:
        # A list must show the other checkpoints too, so a damaged manifest is a row and not an error.
        return Row(name=name, superseded=superseded, verified=False, problem=str(error))


def verified(store: CheckpointStore, manifest: CheckpointManifest) -> bool:
    """Whether every byte of a checkpoint is there and unchanged."""
    try:
        store.verify(manifest)
    except DamagedCheckpointError:
        return False
    return True


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


Described = dict[CheckpointName, Mapping[str, Any]]
"""Rows of `summary.json` by checkpoint."""


def described_in(content: bytes) -> Described:
    """The rows of an earlier `summary.json`, whose checkpoints need not be read again; none if it is damaged."""
    try:
        document = json.loads(content.decode())
        rows_by_name = {parse_file_name(row["name"]): row for row in document["checkpoints"] if "problem" not in row}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return {name: row for name, row in rows_by_name.items() if name is not None}


def summary(store: CheckpointStore, described: Described) -> dict[str, Any]:
    """The content of `summary.json`: where a run stands, in one small file for people and programs.

    Args:
        store: The run's checkpoints.
        described: Rows that are known, so that their manifests are not read again. Those of this summary replace them.
    """
    newest = store.newest()
    if newest is None:
        return {"schema": SCHEMA, "checkpoints": []}
    values, history, started_at = newest.values, newest.values.history, newest.name.attempt_start
    return {
        "schema": SCHEMA,
        "step": newest.name.step,
        "total_steps": values.total_steps,
        "epoch": values.epoch,
        "samples": history.samples,
        "tokens": history.tokens,
        "scaler_skips": history.scaler_skips,
        "complete": FINAL in newest.name.tags,
        "attempt": newest.name.attempt,
        "resumed": started_at > 0,
        "attempt_started_at_step": started_at,
        # By the order of samples instead of the history, which holds the count of the newest step only.
        "attempt_started_at_epoch": values.epoch_at(started_at),
        "best_validation": plain(history.best),
        "best_checkpoint": _best_file(retention.current(store.names()), history.best),
        "last_validation": plain(history.validations[-1]) if history.validations else None,
        "validations_without_improvement": history.validations_without_improvement,
        "overfitting_since_step": history.overfitting_since,
        "training_set": plain(values.dataset.files),
        "training_type": _training_type(values),
        "trained_parameters": values.parameters.trained,
        "frozen_rows": values.vocabulary.base_pieces if values.vocabulary.new_rows else 0,
        "new_rows": values.vocabulary.new_rows,
        "adapter_rank": values.adapter.rank if values.adapter else 0,
        "train_loss_since_last_line": history.train_loss,
        "updated": newest.created,
        "checkpoints": _described(store, described),
    }


def tells_of_none(content: bytes) -> bool:
    """Whether a `summary.json` says that a person has deleted all checkpoints."""
    try:
        return bool(json.loads(content.decode())["checkpoints"] == [])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def summarise_again(store: CheckpointStore) -> None:
    """Write `summary.json` after a person has tagged or removed a checkpoint, whatever a training commits meanwhile."""
    before: Sequence[CheckpointName] | None = None
    while before != (names := store.names()):
        before = names
        write_summary(store)


def write_summary(store: CheckpointStore, described: Described | None = None) -> None:
    """Write `summary.json`.

    Args:
        store: The run's checkpoints.
        described: As for `summary`; None = none are known.
    """
    document = summary(store, {} if described is None else described)
    store.storage.write(SUMMARY, json.dumps(document, indent=1).encode())


def _best_file(names: Sequence[CheckpointName], best: Validation | None) -> str | None:
    """Name of the best checkpoint; None where it is not stored yet."""
    return next((file_name(name) for name in names if best and BEST in name.tags and name.step == best.step), None)


def _described(store: CheckpointStore, described: Described) -> list[Mapping[str, Any]]:
    """All rows, newest first. Written after every commit, so neither gigabytes nor every manifest may be read."""
    names = store.names()
    current = set(retention.current(names))
    found: Described = {}
    for name in reversed(names):
        superseded = name not in current
        row = described.get(name) or _row(store, name, superseded=superseded, verify=False).to_json()
        found[name] = {**row, "superseded": superseded}
    described.clear()
    described.update({name: row for name, row in found.items() if "problem" not in row})
    return list(found.values())


def _training_type(values: CheckpointValues) -> str:
    """For people; the figures stand beside it."""
    vocabulary = values.vocabulary
    rows = f"{vocabulary.base_pieces} base rows frozen, {vocabulary.new_rows} new rows train"
    if values.adapter:
        return f"adapter of rank {values.adapter.rank}" + (f", {rows}" if vocabulary.new_rows else "")
    return rows if vocabulary.new_rows else "all rows train"


def log_entry(manifest: CheckpointManifest, url: str) -> dict[str, Any]:
    """One line of `checkpoint_log.json`, which lists every checkpoint that ever existed.

    Args:
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
