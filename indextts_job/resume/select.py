"""Where to go on from: find the checkpoint that is asked for, and verify it.

Three ways to start: from the base checkpoint; at the exact place of a checkpoint; or with a checkpoint's weights but
fresh moments, schedule and position, which belong together.
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
    """Checkpoints of the old trainer to start from: the first of them that can be read."""
    weights_only: bool = False
    notes: tuple[str, ...] = ()
    """What the user should know about the choice."""

    @property
    def step(self) -> int:
        """The position to go on from; 0 where moments, schedule and position start afresh."""
        return self.point.name.step if self.point and not self.weights_only else 0


def select(config: ResumeConfig, own: CheckpointStore, repair: Repair | None = None) -> Selection:
    """Pick and verify the checkpoint that a configuration asks for.

    A requeued job repeats its command line. So a `resume` that names another run counts only while this run has no
    checkpoint, and one that names an older checkpoint of this run counts only until the run has committed behind it.

    Args:
        config: What is asked for.
        own: The run's checkpoints.
        repair: See `points.read`.

    Raises:
        ConfigError: The request cannot be fulfilled, or would overwrite something.
        DataError: There are checkpoints, but none can be read.
    """
    names = _own_names(own)
    if config.source in ("none", "auto", "own"):
        return _own_or_fresh(config, own, names, repair)
    if is_old_checkpoint(config.source):
        return _old_checkpoint(config, own, names, repair)
    source, name = locate(config.source, may_be_gone=True)
    if same_place(source.storage.url, own.storage.url):
        return _within_own_run(config, own, names, name, repair)
    if names:
        return _after_a_requeue(config, own, source.storage.url, repair)
    return _fork(config, source, name)


def _own_names(own: CheckpointStore) -> list[CheckpointName]:
    """The run's current checkpoints, newest first.

    Raises:
        DataError: The run has had checkpoints, and has none now.
    """
    names = retention.current(own.names())
    if names or not _has_had_checkpoints(own):
        return names
    # An older attempt that is still ending may have committed its first checkpoint after the listing.
    names = retention.current(own.names())
    if not names:
        raise _lost_checkpoints(own.storage.url)
    return names


def _fork(config: ResumeConfig, source: CheckpointStore, name: CheckpointName | None) -> Selection:
    """Start this run from a checkpoint of another one."""
    if name is None and not files.exists(config.source):
        raise no_such_run(config.source)
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
    if same_place(folder, own.storage.url) and not files.exists(config.source):
        # Commands for the old trainer name the file that it would have written there.
        note = f"there is no {config.source}; this run has checkpoints of its own, as with --resume auto"
        return Selection(point=_newest_of_own(own, repair), notes=(note,))
    return _after_a_requeue(config, own, config.source, repair)


def _after_a_requeue(config: ResumeConfig, own: CheckpointStore, origin: str, repair: Repair | None) -> Selection:
    """The command names the origin of this run, which has checkpoints of its own by now."""
    point = _newest_of_own(own, repair)
    began_from = point.manifest.values.lineage.run or ""
    # The lineage is recorded without secrets, and the command may spell the same place in another way.
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
    later = [other for other in names if other.step > name.step]
    note = f"going back to step {name.step}; {len(later)} later checkpoints stay until this line has passed them"
    return Selection(point=read(own, name, repair), notes=(note,) if later else ())


def _already_went_back(names: list[CheckpointName], name: CheckpointName) -> str:
    """What to tell when an earlier start of this command has gone back to a checkpoint already; empty otherwise."""
    for other in names:
        if other.attempt > name.attempt and other.attempt_start == name.step < other.step:
            return (
                f"attempt {other.attempt} went back to step {name.step} already; going on from the newest. To go "
                "back again, fork: give another --output-dir"
            )
    return ""


def _newest_of_own(own: CheckpointStore, repair: Repair | None) -> ResumePoint:
    """The newest checkpoint, also while an older attempt still commits and removes what this one has just listed."""
    while True:
        names = own.names()
        try:
            return newest(own, repair)
        except DataError:
            if own.names() == names:
                raise


def _has_had_checkpoints(own: CheckpointStore) -> bool:
    return describe.SUMMARY in own.storage.list("") and bool(own.storage.list(fence.FOLDER))


def _lost_checkpoints(run: str) -> DataError:
    """To begin anew would bury them: they may have been moved away, or a mount is missing."""
    return DataError(
        f"{run} has had checkpoints ({describe.SUMMARY} tells of them), and {MANIFESTS}/ holds none. Nothing was "
        "deleted: put them back. For a run from the start give another folder (--output-dir)."
    )
