"""Finds and verifies the checkpoint that an attempt starts from.

There are three ways to start: from the base checkpoint; at the exact position of a checkpoint; or with a checkpoint's
weights but fresh moments, schedule and position, which belong together.
"""

from dataclasses import dataclass

from indextts_job.checkpoint import describe, fence, retention
from indextts_job.checkpoint.manifest import MANIFESTS
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import ResumeConfig
from indextts_job.errors import ConfigError, DataError
from indextts_job.legacy.discovery import is_old_checkpoint, old_checkpoints
from indextts_job.redaction import redacted
from indextts_job.resume.points import Repair, ResumePoint, locate, newest, no_such_checkpoint, no_such_run, read
from indextts_job.storage import files
from indextts_job.storage.urls import same_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The checkpoint to start from, if any, and how."""

    point: ResumePoint | None
    legacy: tuple[str, ...] = ()
    """Checkpoints of the old trainer. The first one that can be read is the start."""
    weights_only: bool = False
    notes: tuple[str, ...] = ()
    """Warnings for the user about the choice."""

    @property
    def step(self) -> int:
        """The position to resume at; 0 when moments, schedule and position start afresh."""
        return self.point.name.step if self.point and not self.weights_only else 0


def select(config: ResumeConfig, own: CheckpointStore, repair: Repair | None = None) -> Selection:
    """Find and verify the checkpoint that a configuration asks for.

    A requeued job repeats its command line. So a `resume` that names another run counts only until this run has a
    checkpoint, and one that names an older checkpoint of this run only until a later step has been committed from it.

    Args:
        repair: As in `points.read`.

    Raises:
        ConfigError: The request cannot be fulfilled, or would overwrite something.
        DataError: There are checkpoints, but none can be read.
    """
    names = _own_names(own)
    if config.source in ("none", "auto", "own"):
        return _own_or_fresh(config, own, names, repair)
    if is_old_checkpoint(config.source):
        return _old_checkpoint(config, own, names, repair)
    # After a requeue the origin may be deleted; whether it is needed turns out below.
    source, name = locate(config.source, may_be_gone=True)
    # Before the check of `names`: a path to this run, spelled in another way, is no other run.
    if same_place(source.storage.url, own.storage.url):
        return _within_own_run(config, own, names, name, repair)
    if names:
        return _after_a_requeue(config, own, source.storage.url, repair)
    return _fork(config, source, name)


def _own_names(own: CheckpointStore) -> list[CheckpointName]:
    """The run's current checkpoints, newest first.

    Raises:
        DataError: The run has had checkpoints, and has none now. A fresh start would bury them.
    """
    names = retention.current(own.names())
    if names or not _has_had_checkpoints(own):
        return names
    # Listed again: an older attempt that is still ending may have committed its first checkpoint after the listing.
    names = retention.current(own.names())
    if not names:
        raise _lost_checkpoints(own.storage.url)
    return names


def _fork(config: ResumeConfig, source: CheckpointStore, name: CheckpointName | None) -> Selection:
    """Start this run from a checkpoint of another one."""
    if name is None and not files.exists(config.source):
        raise no_such_run(config.source)
    # By a listing: `locate` has not asked whether the file is there.
    if name and name not in source.names():
        raise no_such_checkpoint(config.source, source.storage.url)
    point = read(source, name) if name else newest(source)
    return Selection(point=point, weights_only=config.weights_only)


def _own_or_fresh(
    config: ResumeConfig, own: CheckpointStore, names: list[CheckpointName], repair: Repair | None
) -> Selection:
    """`auto`, `own` or `none`."""
    if not names:
        return _before_the_first_checkpoint(config, own)
    # Never overwritten: a fresh start in this folder would supersede every checkpoint of the run.
    if config.source == "none":
        raise ConfigError(
            f"{own.storage.url} already holds {len(names)} checkpoints (newest: step {names[0].step}). Use "
            "--resume auto to go on, or another run folder (--output-dir) for a new run; nothing is overwritten."
        )
    if config.weights_only:
        raise _needs_new_folder(own.storage.url, f"--resume {own.storage.url} --output-dir NEW")
    return Selection(point=_newest_of_own(own, repair))


def _needs_new_folder(run: str, how: str) -> ConfigError:
    return ConfigError(f"{run} already holds checkpoints. Weights with fresh moments need a new run folder: {how}.")


def _before_the_first_checkpoint(config: ResumeConfig, own: CheckpointStore) -> Selection:
    """A run without checkpoints of its own starts from those of the old trainer in its folder, or afresh."""
    folder = own.storage.url.rstrip("/")
    old = tuple(f"{folder}/{name}" for name in old_checkpoints(own.storage.list("")))
    if not old:
        return Selection(point=None)
    if config.source == "auto":
        note = f"no checkpoint of this run yet; the old trainer left {', '.join(old[:3])}: going on from there"
        return Selection(point=None, legacy=old, weights_only=config.weights_only, notes=(note,))
    # `none` and `own` ask for a start without it; the note explains why the training begins at step 0.
    note = f"{old[0]} of the old trainer is in the run's folder and is NOT used; --resume auto goes on from it"
    return Selection(point=None, notes=(note,))


def _old_checkpoint(
    config: ResumeConfig, own: CheckpointStore, names: list[CheckpointName], repair: Repair | None
) -> Selection:
    """The command names a checkpoint file of the old trainer."""
    if not names:
        return Selection(point=None, legacy=(config.source,), weights_only=config.weights_only)
    folder = config.source.rpartition("/")[0] or "."
    if same_place(folder, own.storage.url) and not files.exists(config.source):
        # Commands for the old trainer name the file that it would have written there.
        note = f"there is no {config.source}; this run has checkpoints of its own, as with --resume auto"
        return Selection(point=_newest_of_own(own, repair), notes=(note,))
    return _after_a_requeue(config, own, config.source, repair)


def _after_a_requeue(config: ResumeConfig, own: CheckpointStore, origin: str, repair: Repair | None) -> Selection:
    """The command names the origin of this run, which has checkpoints of its own meanwhile."""
    point = _newest_of_own(own, repair)
    began_from = point.manifest.values.lineage.run or ""
    # The lineage is recorded without secrets, and the command may spell the same place differently.
    if same_place(began_from, redacted(origin)):
        return Selection(point=point, notes=(f"this run has its own checkpoints; {config.source} is not needed",))
    if not is_old_checkpoint(origin) and not files.exists(config.source):
        raise no_such_run(config.source)
    raise ConfigError(
        f"{own.storage.url} already holds checkpoints of a run that did not start from {origin}. Use another run "
        "folder (--output-dir)."
    )


def _within_own_run(
    config: ResumeConfig,
    own: CheckpointStore,
    names: list[CheckpointName],
    name: CheckpointName | None,
    repair: Repair | None,
) -> Selection:
    """The command names this run, or one of its checkpoints."""
    if config.weights_only:
        raise _needs_new_folder(own.storage.url, "--output-dir NEW")
    if name is None:
        return Selection(point=newest(own, repair))
    if note := _already_went_back(names, name):
        return Selection(point=newest(own, repair), notes=(note,))
    if name not in own.names():
        raise no_such_checkpoint(config.source, own.storage.url)
    # They are not deleted: until the new line has reached their steps, a user may still change the mind.
    later = [other for other in names if other.step > name.step]
    note = f"going back to step {name.step}; {len(later)} later checkpoints stay until this line has passed them"
    return Selection(point=read(own, name, repair), notes=(note,) if later else ())


def _already_went_back(names: list[CheckpointName], name: CheckpointName) -> str:
    """A note when an earlier start of this command has already gone back to the checkpoint; empty otherwise."""
    for other in names:
        # It began at this step and has committed later ones: the requeued job goes on instead of going back again.
        if other.attempt > name.attempt and other.attempt_start == name.step < other.step:
            return (
                f"attempt {other.attempt} went back to step {name.step} already; going on from the newest. To go "
                "back again, fork: give another --output-dir"
            )
    return ""


def _newest_of_own(own: CheckpointStore, repair: Repair | None) -> ResumePoint:
    """The newest checkpoint, also while an older attempt still commits, and removes checkpoints listed here."""
    while True:
        names = own.names()
        try:
            return newest(own, repair)
        except DataError:
            # The listing is unchanged, so nobody removed it: the damage is real.
            if own.names() == names:
                raise


def _has_had_checkpoints(own: CheckpointStore) -> bool:
    # The summary is written after the first commit; attempts also exist in a run that has never committed.
    if describe.SUMMARY not in own.storage.list("") or not own.storage.list(fence.FOLDER):
        return False
    # `checkpoints delete` leaves an empty list behind the last one: then nobody has to put anything back.
    return not describe.tells_of_none(own.storage.read(describe.SUMMARY))


def _lost_checkpoints(run: str) -> DataError:
    """The error for a run whose checkpoints are gone: somebody has moved them, or a mount is missing."""
    return DataError(
        f"{run} has had checkpoints ({describe.SUMMARY} tells of them), and {MANIFESTS}/ holds none. Nothing was "
        "deleted: put them back. For a run from the start give another folder (--output-dir)."
    )
