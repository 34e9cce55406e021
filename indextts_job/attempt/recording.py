"""Connects an attempt to its run: rank 0 takes the attempt's number, writes events and commits checkpoints (I5)."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from indextts_job.attempt.inputs import Inputs, check_stop
from indextts_job.attempt.records import (
    Laps,
    ValuesRecorder,
    attempt_record,
    constant_values,
    environment,
    run_readers,
)
from indextts_job.attempt.start import Start
from indextts_job.attempt.validation_command import validation_command
from indextts_job.background import begin
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.removal import collect_orphans
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import RunConfig
from indextts_job.hardware.plan import HardwareFacts, in_samples
from indextts_job.loop.background_saver import BackgroundSaver
from indextts_job.loop.checkpointing import Record
from indextts_job.loop.publisher import Publisher
from indextts_job.preemption.exit_guard import ExitGuard
from indextts_job.preemption.signals import StopSignals
from indextts_job.redaction import redacted
from indextts_job.report.attempts import previous_end
from indextts_job.report.events import AttemptEnded, AttemptStarted, Emit, Notice
from indextts_job.report.stream import EventStream
from indextts_job.resume.points import Repair
from indextts_job.resume.select import Selection
from indextts_job.resume.shared_objects import Repaired
from indextts_job.speaking.script import Script
from indextts_job.training.distributed import ProcessGroup
from indextts_job.waiting import result


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An attempt that is ready to train."""

    config: RunConfig
    document: Mapping[str, Any]
    """The configuration as checkpoints record it, with secrets."""
    inputs: Inputs
    facts: HardwareFacts
    start: Start
    store: CheckpointStore
    selection: Selection
    repair: Repair
    stop: StopSignals
    emit: EventStream
    group: ProcessGroup
    saver_group: ProcessGroup
    """A second group of the same ranks, for the thread that saves."""
    guard: ExitGuard
    exclusive: Future[bool] | None
    """`RunStorage.excludes_creators` of the run, on rank 0."""
    script: Script | None = None
    """What the model speaks at validations."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The objects that write the checkpoints and the end of the attempt."""

    saver: BackgroundSaver
    record: Record
    ended: Callable[[str, int, str], None]
    """Called once with outcome, exit code, and a message that is empty unless the attempt failed."""
    trained: Callable[[Callable[[], bool]], None]
    """Called when training has ended, with whether a stop is requested: waits for what runs beside it, or ends it."""


def other_rank(parts: Parts) -> Recording:
    """The recording of a rank other than 0, which writes its part of the checkpoints and reports nothing."""

    def ended(_outcome: str, code: int, message: str) -> None:
        if not message:
            parts.guard.leaves(code)

    saver = BackgroundSaver(parts.store, None, parts.saver_group, parts.emit, parts.stop)
    return Recording(saver, lambda _state, _pace: None, ended, _nothing)


def rank_zero(parts: Parts, laps: Laps) -> Recording:
    """Take the next attempt number and start to report.

    Args:
        laps: Durations of the start-up.
    """
    config, inputs, start, emit, store = parts.config, parts.inputs, parts.start, parts.emit, parts.store
    step = start.state.step
    # As late as possible: taking a number supersedes the attempt before, which trains until then.
    fence = _fence(parts, laps)
    _tidy(store, emit)
    emit(Notice(step=step, topic="run", message=f"{config.run}, attempt {fence.attempt}"))
    if inputs.checks:
        begin(inputs.checks.flush, "data checks")
    laps.done("run folder")
    samples = config.recipe.global_batch_samples
    shape = in_samples(start.capacity.tokens, inputs.mean_tokens, samples, parts.group.world_size)
    emit(Notice(step=step, topic="plan", message=shape))
    emit(Notice(step=step, topic="start-up", message=str(laps)))
    # Here, because their files are named after the attempt's number.
    command = validation_command(config, emit)
    readers = run_readers(config, store.storage, fence.attempt, inputs.train_set, step)
    emit.start([*readers, command] if command else readers)
    machine = environment(parts.facts, start.plan, parts.group.world_size)
    values = constant_values(parts.document, inputs, start, machine)
    emit(
        AttemptStarted(
            step=step,
            attempt=fence.attempt,
            total_steps=inputs.total_steps,
            resumed_from=start.lineage.checkpoint,
            details=values.to_json()["environment"],
        )
    )
    reference = partial(start.reference.begun, start.engine)
    saver = BackgroundSaver(store, _publisher(parts, fence), parts.saver_group, emit, parts.stop, reference)
    recorder = ValuesRecorder(values, start.engine, inputs.order)
    return Recording(saver, recorder, partial(_end, parts), command.finish if command else _nothing)


def _nothing(_stopped: Callable[[], bool]) -> None:
    """Nothing runs beside the training."""


def _fence(parts: Parts, laps: Laps) -> Fence:
    record = attempt_record(
        facts=parts.facts,
        world_size=parts.group.world_size,
        step=parts.start.state.step,
        resume=parts.config.resume.source,
        launched=laps.began(),
        previous=previous_end(parts.store.storage),
        model=str(parts.inputs.model.version),
    )
    return Fence(parts.store.storage, record, exclusive=_exclusive(parts))


def _exclusive(parts: Parts) -> bool | None:
    return result(parts.exclusive, partial(check_stop, parts.stop)) if parts.exclusive else None


def _publisher(parts: Parts, fence: Fence) -> Publisher:
    point = parts.selection.point
    return Publisher(
        parts.store,
        fence,
        attempt_start=parts.start.state.step,
        keep=parts.config.checkpoint.keep,
        # A fork passes over checkpoints of the other run, which retention never touches anyway.
        unreadable=point.unreadable if point and point.store is parts.store else (),
        files={"tokenizer.model": parts.inputs.tokenizer.content},
        audit=partial(_audit, parts.store, parts.repair),
    )


def _end(parts: Parts, outcome: str, code: int, message: str) -> None:
    parts.guard.leaves(code)
    step = parts.start.state.step
    parts.emit(AttemptEnded(step=step, outcome=outcome, exit_code=code, message=redacted(message)))
    # The process leaves with `os._exit`, so nothing else would write the last events.
    parts.store.storage.flush()


def _audit(store: CheckpointStore, repair: Repair) -> Repaired:
    """Verify and repair the objects that the newest checkpoint shares with all others."""
    newest = store.newest()
    return repair(store, newest) if newest else Repaired()


def _tidy(store: CheckpointStore, emit: Emit) -> None:
    try:
        collect_orphans(store)
    # A store may not support the requests, or a manifest may be damaged. Neither prevents the training.
    except Exception as error:  # noqa: BLE001
        message = f"left-over objects of interrupted saves were not removed: {error}"
        emit(Notice(step=0, topic="checkpoint", message=message, warning=True))
