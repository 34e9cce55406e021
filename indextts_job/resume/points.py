"""Finds one checkpoint by its name, reads it and verifies it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, StoredObject, file_name, parse_file_name
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import resumed
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.legacy.discovery import is_old_checkpoint
from indextts_job.resume.shared_objects import Repaired
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage

Repair = Callable[[CheckpointStore, CheckpointManifest], Repaired]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A verified checkpoint."""

    store: CheckpointStore
    manifest: CheckpointManifest
    tensors: Mapping[str, Tensor]
    passed_over: tuple[str, ...] = ()
    """For each newer checkpoint, the reason why it could not be read."""
    unreadable: tuple[CheckpointName, ...] = ()
    """Names of those checkpoints; this attempt never deletes them."""
    lost: tuple[StoredObject, ...] = ()
    """Objects of it that are missing or cut, by a listing; training does not read all of them."""
    repaired: tuple[str, ...] = ()
    """Messages about damage in it, and about its repair."""

    @property
    def name(self) -> CheckpointName:
        """Name of the checkpoint."""
        return self.manifest.name

    @property
    def url(self) -> str:
        """Path or URL of its manifest."""
        return f"{self.store.storage.url}/{MANIFESTS}/{file_name(self.name)}"


def newest(store: CheckpointStore, repair: Repair | None = None) -> ResumePoint:
    """The newest checkpoint that can be read and verified. Newer ones are reported and not changed.

    A checkpoint that cannot be read ranks below every one that can, because its name may hold any number.

    Args:
        repair: As in `read`.

    Raises:
        ConfigError: There is none.
        DataError: None of them can be read.
    """
    names = store.names()
    if not names:
        raise ConfigError(f"{store.storage.url} holds no checkpoints. Give a run folder or one of its manifests.")
    passed_over: list[str] = []
    unreadable: list[CheckpointName] = []
    # Computed again without the unreadable ones: one of them may have superseded a checkpoint that is whole.
    while candidates := retention.current(name for name in names if name not in unreadable):
        try:
            point = read(store, candidates[0], repair)
        except DataError as error:
            passed_over.append(str(error))
            unreadable.append(candidates[0])
            continue
        return replace(point, passed_over=tuple(passed_over), unreadable=tuple(unreadable))
    raise DataError(
        findings_message(
            f"{store.storage.url}: none of its {len(names)} checkpoints can be read",
            passed_over,
            "Nothing was deleted. Restore the files, or start a new run in another folder.",
        )
    )


def read(store: CheckpointStore, name: CheckpointName, repair: Repair | None = None) -> ResumePoint:
    """One checkpoint, verified, with the tensors that training needs.

    Args:
        repair: Writes damaged objects again that all checkpoints share; returns messages about it.

    Raises:
        DataError: It is not whole.
    """
    manifest = store.manifest(name)
    tensors, repaired = _loaded(store, manifest, repair)
    # Training does not read every object. A run that is complete makes no further save whose audit would find a hole
    # in the others.
    lost = tuple(store.missing(manifest))
    if restored := store.restored_from_copies(lost):
        repaired += (
            f"{len(restored)} objects of the checkpoint were lost; written again from the copies on this node",
        )
        lost = tuple(one for one in lost if one not in restored)
    if repair and lost and not repaired:
        repaired = repair(store, manifest).told
    return ResumePoint(store=store, manifest=manifest, tensors=tensors, lost=lost, repaired=repaired)


def _loaded(
    store: CheckpointStore, manifest: CheckpointManifest, repair: Repair | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that training needs, and messages about repairs."""
    try:
        return store.load(manifest, resumed(manifest.tensors)), ()
    except DamagedCheckpointError as error:
        told = repair(store, manifest).told if repair else ()
        if not told:
            raise
        # Once more after the repair; damage elsewhere raises here.
        return store.load(manifest, resumed(manifest.tensors)), (str(error), *told)


def locate(
    source: str, storage: StorageConfig | None = None, *, may_be_gone: bool = False
) -> tuple[CheckpointStore, CheckpointName | None]:
    """A run folder, or the manifest of one checkpoint, as the user names it.

    Args:
        source: Path or URL.
        storage: Settings of remote storage.
        may_be_gone: Accept a name of something that no longer exists, because a run needs its origin only once.

    Raises:
        ConfigError: It is neither.
    """
    if is_old_checkpoint(source):
        raise ConfigError(
            f"{source} is a checkpoint of the old trainer. `train --resume` takes it over; give a run here."
        )
    if source.endswith(".json"):
        return _located_checkpoint(source, storage, may_be_gone=may_be_gone)
    if not (may_be_gone or files.exists(source)):
        raise no_such_run(source)
    return CheckpointStore(open_storage(source.rstrip("/"), storage)), None


def locate_all(source: str, storage: StorageConfig | None = None) -> tuple[CheckpointStore, list[CheckpointName]]:
    """The checkpoint that a user names, or all current ones of a run, newest first; at least one.

    Args:
        source: Path or URL of a run, or of one checkpoint's manifest.
        storage: Settings of remote storage.

    Raises:
        ConfigError: It is neither, or the run has no checkpoint.
    """
    store, name = locate(source, storage)
    names = [name] if name else retention.current(store.names())
    if not names:
        raise ConfigError(f"{source} holds no checkpoints.")
    return store, names


def _located_checkpoint(
    source: str, storage: StorageConfig | None, *, may_be_gone: bool
) -> tuple[CheckpointStore, CheckpointName]:
    folder, _, file = source.rpartition("/")
    name = parse_file_name(file)
    # A manifest lies in RUN/checkpoints/; a relative name may begin with that folder.
    run = folder.rpartition("/")[0] or "."
    if name is None or not (may_be_gone or files.exists(source)):
        raise no_such_checkpoint(source, run)
    return CheckpointStore(open_storage(run, storage)), name


def recorded_config(run: str) -> dict[str, Any] | None:
    """The configuration in a run's newest readable manifest; None when the run has no checkpoint.

    Raises:
        DataError: There are checkpoints, but no manifest can be read.
    """
    if not files.exists(run):
        return None
    store, name = locate(run)
    manifest = store.manifest(name) if name else store.newest()
    return dict(manifest.values.config) if manifest else None


def no_such_run(source: str) -> ConfigError:
    """The error for a name that is no run."""
    return ConfigError(f"{source}: no such run. Give auto, none, own, a run folder or URL, or one of its manifests.")


def no_such_checkpoint(source: str, run: str) -> ConfigError:
    """The error for a name that is no checkpoint of a run."""
    return ConfigError(f"{source}: no such checkpoint. `indextts-job checkpoints list {run}` shows what there is.")
