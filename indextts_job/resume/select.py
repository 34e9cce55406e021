"""Where to go on from: find the checkpoint that is asked for, and verify it.

Three ways to start: from the base checkpoint; at the exact place of a checkpoint; or with a checkpoint's weights but
fresh moments, schedule and position, which belong together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from indextts_job.checkpoint import describe, fence, retention
from indextts_job.checkpoint.manifest import MANIFESTS, CheckpointManifest, file_name, parse_file_name
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import ResumeConfig
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.legacy.discovery import is_old_checkpoint, old_checkpoints
from indextts_job.model.vocabulary import TEXT_TABLES
from indextts_job.redaction import redacted
from indextts_job.resume.shared_objects import Repaired
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.retry import StorageConfig
from indextts_job.training.state import BASE, FIRST_MOMENT, SECOND_MOMENT, WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A verified checkpoint."""

    store: CheckpointStore
    manifest: CheckpointManifest
    tensors: Mapping[str, Tensor]
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that could not be read, and why."""
    unreadable: tuple[CheckpointName, ...] = ()
    repaired: tuple[str, ...] = ()
    """What was damaged in it, and what was done about it."""

    @property
    def name(self) -> CheckpointName:
        """Its name."""
        return self.manifest.name

    @property
    def url(self) -> str:
        """Path or URL of its manifest."""
        return f"{self.store.storage.url}/{MANIFESTS}/{file_name(self.name)}"


Repair = Callable[[CheckpointStore, CheckpointManifest], Repaired]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The checkpoint to start from, if any, and how."""

    point: ResumePoint | None
    legacy: tuple[str, ...] = ()
    """Checkpoints of the old trainer to start from: the first of them that can be read."""
    weights_only: bool = False
    notes: tuple[str, ...] = ()
    """What the user should know about the choice."""


def select(config: ResumeConfig, own: CheckpointStore, repair: Repair | None = None) -> Selection:
    """Pick and verify the checkpoint that a configuration asks for.

    A requeued job repeats its command line. So `resume` naming another run counts only while this run has no
    checkpoint, and naming an older one of this run counts only until the run has committed behind it.

    Args:
        config: What is asked for.
        own: The run's checkpoints.
        repair: See `read`.

    Raises:
        ConfigError: The request cannot be fulfilled, or would overwrite something.
        DataError: There are checkpoints, but none can be read.
    """
    names = retention.current(own.names())
    if not names and _has_had_checkpoints(own):
        # An older attempt that is still ending may have committed its first one behind the listing.
        names = retention.current(own.names())
        if not names:
            raise _lost_checkpoints(own.storage.url)
    if config.source in ("none", "auto", "own"):
        return _own_or_fresh(config, own, names, repair)
    if is_old_checkpoint(config.source):
        return _old_checkpoint(config, own, names, repair)
    source, name = locate(config.source, may_be_gone=True)
    if _same_place(source, own):
        return _within_own_run(config, own, names, name, repair)
    if names:
        return _after_a_requeue(config, own, source.storage.url, repair)
    if name is None and not files.exists(config.source):
        raise _no_such_run(config.source)
    if name and name not in source.names():
        raise _no_such_checkpoint(config.source, source.storage.url)
    point = read(source, name) if name else newest(source)
    return Selection(point=point, weights_only=config.weights_only)


def _own_or_fresh(
    config: ResumeConfig, own: CheckpointStore, names: list[CheckpointName], repair: Repair | None
) -> Selection:
    if not names:
        return _before_the_first_checkpoint(config, own)
    if config.source == "none":
        raise ConfigError(
            f"{own.storage.url} already holds {len(names)} checkpoints (newest: step {names[0].step}). Use "
            "--resume auto to go on, or another run folder (--output-dir) for a new run; nothing is overwritten."
        )
    if config.weights_only:
        raise ConfigError(
            f"{own.storage.url} already holds checkpoints. Weights with fresh moments need a new run folder: "
            f"--resume {own.storage.url} --output-dir NEW."
        )
    return Selection(point=_newest_of_own(own, repair))


def _before_the_first_checkpoint(config: ResumeConfig, own: CheckpointStore) -> Selection:
    """A run without checkpoints of its own: those that an old trainer left in its folder, or a fresh start."""
    folder = own.storage.url.rstrip("/")
    old = tuple(f"{folder}/{name}" for name in old_checkpoints(own.storage.list("")))
    if not old:
        return Selection(point=None)
    if config.source == "auto":
        note = f"no checkpoint of this run yet; the old trainer left {', '.join(old[:3])}: going on from there"
        return Selection(point=None, legacy=old, weights_only=config.weights_only, notes=(note,))
    note = f"{old[0]} of the old trainer is in the run's folder and is NOT used; --resume auto goes on from it"
    return Selection(point=None, notes=(note,))


def _old_checkpoint(
    config: ResumeConfig, own: CheckpointStore, names: list[CheckpointName], repair: Repair | None
) -> Selection:
    """The command names a checkpoint file of the old trainer."""
    if not names:
        return Selection(point=None, legacy=(config.source,), weights_only=config.weights_only)
    folder = config.source.rpartition("/")[0] or "."
    if _same_url(folder, own.storage.url) and not files.exists(config.source):
        # Commands of the old trainer name the file that it would have written there.
        note = f"there is no {config.source}; this run has checkpoints of its own, as with --resume auto"
        return Selection(point=_newest_of_own(own, repair), notes=(note,))
    return _after_a_requeue(config, own, config.source, repair)


def _after_a_requeue(config: ResumeConfig, own: CheckpointStore, origin: str, repair: Repair | None) -> Selection:
    """The command names where this run once came from, and the run has checkpoints of its own by now."""
    point = _newest_of_own(own, repair)
    began_from = point.manifest.values["lineage"].get("run", "")
    # Recorded without secrets; and the same place may be spelled in other ways.
    if not _same_url(began_from, redacted(origin)):
        if not is_old_checkpoint(origin) and not files.exists(config.source):
            raise _no_such_run(config.source)
        raise ConfigError(
            f"{own.storage.url} already holds checkpoints of a run that did not start from {origin}. Use another run "
            "folder (--output-dir)."
        )
    return Selection(point=point, notes=(f"this run has its own checkpoints; {config.source} is not needed",))


def _within_own_run(
    config: ResumeConfig,
    own: CheckpointStore,
    names: list[CheckpointName],
    name: CheckpointName | None,
    repair: Repair | None,
) -> Selection:
    if config.weights_only:
        raise ConfigError(
            f"{own.storage.url} already holds checkpoints. Weights with fresh moments need a new run folder "
            "(--output-dir)."
        )
    if name is None:
        return Selection(point=newest(own, repair))
    went_back = [n for n in names if n.attempt > name.attempt and n.attempt_start == name.step < n.step]
    if went_back:
        note = (
            f"attempt {went_back[0].attempt} went back to step {name.step} already; going on from the newest. To go "
            "back again, fork: give another --output-dir"
        )
        return Selection(point=newest(own, repair), notes=(note,))
    if name not in own.names():
        raise _no_such_checkpoint(config.source, own.storage.url)
    later = [n for n in names if n.step > name.step]
    note = f"going back to step {name.step}; {len(later)} later checkpoints stay until this line has passed them"
    return Selection(point=read(own, name, repair), notes=(note,) if later else ())


def _newest_of_own(own: CheckpointStore, repair: Repair | None) -> ResumePoint:
    """The newest checkpoint, also while an older attempt still commits and removes what this one has just listed."""
    while True:
        names = own.names()
        try:
            return newest(own, repair)
        except DataError:
            if own.names() == names:
                raise


def newest(store: CheckpointStore, repair: Repair | None = None) -> ResumePoint:
    """The newest checkpoint that verifies; those passed over are named and left alone.

    A checkpoint that cannot be read ranks below every one that can: it may carry any number in its name.

    Args:
        store: The run.
        repair: See `read`.

    Raises:
        ConfigError: There is none.
        DataError: None of them can be read.
    """
    names = store.names()
    if not names:
        raise ConfigError(f"{store.storage.url} holds no checkpoints. Give a run folder or one of its manifests.")
    passed_over: list[str] = []
    unreadable: list[CheckpointName] = []
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
        store: The run.
        name: Of the checkpoint.
        repair: Writes what all checkpoints share again, when it is damaged; gives what there is to be told.

    Raises:
        DataError: It is not whole.
    """
    manifest = store.manifest(name)
    frozen = tuple(BASE + key for key in TEXT_TABLES)
    wanted = (WEIGHTS, FIRST_MOMENT, SECOND_MOMENT, *frozen)
    found: tuple[str, ...] = ()
    try:
        tensors = store.load(manifest, wanted)
    except DamagedCheckpointError as error:
        told = repair(store, manifest).told if repair else ()
        if not told:
            raise
        tensors, found = store.load(manifest, wanted), (str(error), *told)
    # Also what training does not read: a run that is complete would otherwise keep the hole.
    if not found and repair and store.missing(manifest):
        found = repair(store, manifest).told
    return ResumePoint(store=store, manifest=manifest, tensors=tensors, repaired=found)


def locate(
    source: str, storage: StorageConfig | None = None, *, may_be_gone: bool = False
) -> tuple[CheckpointStore, CheckpointName | None]:
    """A run folder, or the manifest of one checkpoint, as the user names it.

    Args:
        source: Path or URL.
        storage: How patient to be with remote storage.
        may_be_gone: Accept what is not there any more: a run needs its origin only once.

    Raises:
        ConfigError: It is neither.
    """
    if is_old_checkpoint(source):
        raise ConfigError(
            f"{source} is a checkpoint of the old trainer. `train --resume` takes it over; give a run here."
        )
    if source.endswith(".json"):
        folder, _, file = source.rpartition("/")
        name = parse_file_name(file)
        run = folder.rpartition("/")[0] or "."
        if name is None or not (may_be_gone or files.exists(source)):
            raise _no_such_checkpoint(source, run)
        return CheckpointStore(open_storage(run, storage)), name
    if not (may_be_gone or files.exists(source)):
        raise _no_such_run(source)
    return CheckpointStore(open_storage(source.rstrip("/"), storage)), None


def _has_had_checkpoints(own: CheckpointStore) -> bool:
    return describe.SUMMARY in own.storage.list("") and bool(own.storage.list(fence.FOLDER))


def _lost_checkpoints(run: str) -> DataError:
    """To begin anew would bury them: they may have been moved away, or a mount is missing."""
    return DataError(
        f"{run} has had checkpoints ({describe.SUMMARY} tells of them), and {MANIFESTS}/ holds none. Nothing was "
        "deleted: put them back. For a run from the start give another folder (--output-dir)."
    )


def _no_such_run(source: str) -> ConfigError:
    return ConfigError(f"{source}: no such run. Give auto, none, own, a run folder or URL, or one of its manifests.")


def _no_such_checkpoint(source: str, run: str) -> ConfigError:
    return ConfigError(f"{source}: no such checkpoint. `indextts-job checkpoints list {run}` shows what there is.")


def _same_place(store: CheckpointStore, own: CheckpointStore) -> bool:
    return _same_url(store.storage.url, own.storage.url)


def absolute(url: str) -> str:
    """A local path as it is seen from anywhere; a URL as it is."""
    return str(files.local_path(url).resolve()) if files.is_local(url) else url


def _same_url(one: str, other: str) -> bool:
    one, other = one.rstrip("/"), other.rstrip("/")
    if files.is_local(one) and files.is_local(other):
        return files.local_path(one).resolve() == files.local_path(other).resolve()
    return one == other


def recorded_config(run: str) -> dict[str, Any] | None:
    """The configuration in a run's newest readable manifest; None when the run has no checkpoint.

    Raises:
        DataError: There are checkpoints, but no manifest can be read.
    """
    store, name = locate(run) if files.exists(run) else (None, None)
    if store is None:
        return None
    manifest = store.manifest(name) if name else store.newest()
    return dict(manifest.values["config"]) if manifest else None
