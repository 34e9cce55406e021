"""Runs one attempt, from its configuration to its exit code."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch

from indextts_job.attempt.copies import copies_of_inputs, copies_of_run
from indextts_job.attempt.inputs import Inputs, check_stop, demand_kept, read_inputs, warnings_of
from indextts_job.attempt.recording import Parts, Recording, other_rank, rank_zero
from indextts_job.attempt.records import Laps
from indextts_job.attempt.speaking import demand_same_script, recitals, script_of
from indextts_job.attempt.start import build
from indextts_job.background import begin
from indextts_job.checkpoint.ahead import ObjectsAhead
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.values import demand_storable
from indextts_job.config import RunConfig, recorded_config
from indextts_job.data.loader import Prefetcher, step_batches
from indextts_job.data.packing import Cut
from indextts_job.data.remembered import WrittenLater
from indextts_job.errors import (
    EXIT_OK,
    EXIT_SOFTWARE,
    EXIT_STOPPED,
    AccessRefusedError,
    ConfigError,
    DataError,
    UnavailableError,
)
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.peak import peak_flops
from indextts_job.legacy.discovery import is_old_checkpoint
from indextts_job.loop.checkpointing import CheckpointingSettings
from indextts_job.loop.loop import LoopSettings, TrainingLoop
from indextts_job.loop.save_interval import AUTOMATIC, PRIOR_S, mean_between_kills_s
from indextts_job.loop.work import CutStep, StepWork
from indextts_job.preemption.exit_guard import ExitGuard
from indextts_job.preemption.signals import StopSignals
from indextts_job.report.attempts import attempts
from indextts_job.report.console import ConsoleReport
from indextts_job.report.events import Notice
from indextts_job.report.goodput import kills
from indextts_job.report.stream import EventStream
from indextts_job.report.trackers import demand_installed
from indextts_job.resume.decision import decide
from indextts_job.resume.points import read
from indextts_job.resume.policy import admit
from indextts_job.resume.select import Selection, select
from indextts_job.resume.shared_objects import repair
from indextts_job.speaking.script import Script
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.distributed import ProcessGroup, joined, read_world
from indextts_job.training.engine import allocator
from indextts_job.training.guard import demand_same_records
from indextts_job.training.quality import parse_goals
from indextts_job.training.state import count_parameters
from indextts_job.waiting import result

ASSUMED_SAVE_BYTES_PER_S = 200e6
"""Assumed save rate until one is measured: a slow network disk. A rate too low only discards a step too early, while
one too high could miss the deadline."""


def run_attempt(  # noqa: PLR0913  # what a process has from its start
    config: RunConfig,
    stop: StopSignals,
    console: ConsoleReport,
    started_at_s: float | None = None,
    guard: ExitGuard | None = None,
    ahead: ObjectsAhead | None = None,
    *,
    written: Mapping[str, object] = MappingProxyType({}),
) -> int:
    """Train until the run is complete or a stop is requested.

    Inputs, machine and checkpoint are read in parallel. When all ranks have them, they build the state and train.

    Args:
        config: The checked configuration.
        stop: Stop signals, installed before anything slow.
        console: Shows the progress.
        started_at_s: Instant of the monotonic clock at which the process began, for the durations of the start-up.
        guard: Ends the process at the deadline; follows the phase of the attempt.
        ahead: Objects of the run that are being read already.
        written: Places that a file names with environment variables, as they stand there, by dotted key.

    Returns:
        The exit code: 0 complete, 75 stopped with everything committed.

    Raises:
        IndexTTSJobError: With the exit code of its class; the last checkpoint is intact.
    """
    stop.grace_s = config.preemption.grace_seconds
    laps = Laps(time.monotonic() if started_at_s is None else started_at_s)
    laps.done("imports")
    emit = EventStream(console)
    world = read_world(os.environ)
    files.configure_object_stores(config.storage)
    files.keep_copies_of_inputs(copies_of_inputs(config))
    copies = copies_of_run(config)
    if copies:
        begin(copies.forget_the_old, "old copies")
    store = CheckpointStore(open_storage(config.run, config.storage), copies, ahead)
    # Hours of reading would otherwise end at the first save.
    _demand_writable(config.run)

    # The device's context and the checkpoint take seconds each, so both are read in threads while the data is checked.
    facts_read = begin(partial(read_facts, config.hardware.device, world.local_rank, world.local_world_size), "facts")
    repair_shared = repair(config.inputs.base_checkpoint, config.inputs.tokenizer)
    selected = begin(partial(select, config.resume, store, repair_shared), "checkpoint")
    checks = WrittenLater(store.storage, writes=world.rank == 0)
    document = recorded_config(config, written)
    inputs = read_inputs(config, stop, emit, console, needs_base=_needs_base(config, store), checks=checks)
    _check_settings(config, inputs, emit)
    laps.done("inputs and data")
    # `result` calls the check while it waits: a hanging read must not hide a stop.
    facts = result(facts_read, partial(check_stop, stop))
    # Before any tensor is made: the default is GPU 0 for every process.
    if facts.device == "cuda":
        torch.cuda.set_device(world.local_rank)
    present = inputs.present(config, document)
    selection = decide(result(selected, partial(check_stop, stop)), present, emit)
    _demand_same_records(config, inputs, selection)
    script = _script(config, inputs, selection)
    if ahead:
        ahead.close()
    # Without a local copy of the dataset, the first samples are downloaded while the model is built.
    begin(lambda: inputs.train_set.samples(inputs.order.samples_of(selection.step).tolist()), "first data")
    check_stop(stop)
    laps.done("checkpoint")

    def tell(message: str) -> None:
        emit(Notice(step=selection.step, topic="ranks", message=message, warning=True))

    # As late as possible: what fails before ends one rank with its own message instead of making the others wait.
    with _trusted(checks), joined(world, facts.device, tell) as group:
        # Its three requests run while the model is built.
        exclusive = None if group.rank else begin(store.storage.excludes_creators, "probe")
        selection = _agreed(group, selection, store, partial(decide, present=present, emit=emit))
        start = build(config, inputs, facts=facts, selection=selection, own=store, group=group, emit=emit)
        check_stop(stop)
        laps.done("model")
        # A fresh start has nothing to be compared with.
        if start.checks:
            admit(start.checks, config.resume.checks, stop, emit, start.state.step)
            laps.done("checks")
        _demand_same_start(group, start.state.step)
        parts = Parts(
            config=config,
            document=document,
            inputs=inputs,
            facts=facts,
            start=start,
            store=store,
            selection=selection,
            repair=repair_shared,
            stop=stop,
            emit=emit,
            group=group,
            saver_group=group.new_group(),
            guard=guard or ExitGuard(stop),
            exclusive=exclusive,
            script=script,
        )
        recording = other_rank(parts) if group.rank else rank_zero(parts, laps)
        code = _recorded(parts, recording)
        # A barrier: no rank ends before the last save. Launchers take the first end of a rank as that of all.
        group.any_rank(False)  # noqa: FBT003  # the value does not matter
        return code


def _needs_base(config: RunConfig, store: CheckpointStore) -> bool:
    """Whether the base checkpoint has to be read; a checkpoint of a run holds its tensors already."""
    from_base = config.resume.source in ("auto", "own", "none") or is_old_checkpoint(config.resume.source)
    return from_base and not store.names()


def _check_settings(config: RunConfig, inputs: Inputs, emit: EventStream) -> None:
    # Found now; otherwise the first save would fail, after the work of many steps.
    demand_storable(config.to_json(), "the configuration")
    demand_storable(inputs.model_document, config.inputs.model_config)
    demand_kept(config, inputs)
    demand_installed(config.report.trackers)
    for warning in warnings_of(config, inputs):
        emit(Notice(step=0, topic="settings", message=warning, warning=True))


def _demand_same_records(config: RunConfig, inputs: Inputs, selection: Selection) -> None:
    """Check what the guard compares now: its first comparison may be hours away."""
    guard = selection.point.manifest.values.history.guard if selection.point else None
    if guard and not selection.weights_only:
        demand_same_records(guard, inputs.validation_records(config), config.guard)


def _script(config: RunConfig, inputs: Inputs, selection: Selection) -> Script | None:
    """What the model speaks at validations, compared with what it spoke so far; None where the check is off."""
    script = script_of(config, inputs)
    if selection.point and not selection.weights_only:
        demand_same_script(selection.point.manifest.values.history, script)
    return script


@contextmanager
def _trusted(checks: WrittenLater) -> Iterator[None]:
    """Inside, data is wrong only if it has changed since it was checked: then the next attempt checks it again."""
    try:
        yield
    except DataError:
        checks.forget()
        raise


def _agreed(
    group: ProcessGroup, selection: Selection, store: CheckpointStore, decided: Callable[[Selection], Selection]
) -> Selection:
    """The same checkpoint for all ranks: the oldest that one of them has selected.

    A node may have copies of a checkpoint that is damaged in the bucket, while another node passes over it.
    """
    mine = selection.point.name if selection.point and selection.point.store is store else None
    names = [name for name in group.all_gather(mine) if name]
    if len(set(names)) < 2 or mine is None or mine == min(names):
        return selection
    return decided(replace(selection, point=read(store, min(names))))


def _demand_same_start(group: ProcessGroup, step: int) -> None:
    """Check that all ranks start at the same step.

    Each rank selects the newest checkpoint by itself, while an older attempt may still be committing.

    Raises:
        UnavailableError: They selected different ones.
    """
    steps = set(group.all_gather(step))
    if len(steps) > 1:
        found = ", ".join(map(str, sorted(steps)))
        raise UnavailableError(f"the ranks would start from different steps: {found}. Start again.")


def _recorded(parts: Parts, recording: Recording) -> int:
    """Train, and record the end of the attempt."""
    with parts.guard.training():
        try:
            outcome = _train(parts, recording)
            recording.trained(lambda: parts.stop() is not None)
        except BaseException as error:
            # Any other exception is an error of the program.
            code = getattr(error, "exit_code", EXIT_SOFTWARE)
            outcome = "stopped" if code == EXIT_STOPPED else "failed"
            try:
                # A save in flight holds finished steps, so it is completed whatever the error of the training is.
                recording.saver.finished(wait_s=math.inf)
            finally:
                recording.trained(lambda: True)
                recording.ended(outcome, code, f"{type(error).__name__}: {error}")
            raise
        code = EXIT_OK if outcome == "complete" else EXIT_STOPPED
        recording.ended(outcome, code, "")
        return code


def _train(parts: Parts, recording: Recording) -> str:
    inputs, start, group = parts.inputs, parts.start, parts.group
    settings = _loop_settings(parts)
    if parts.facts.device == "cuda":
        begin(partial(recording.saver.reserve, start.state), "memory of saves")

    allocate = allocator(start.engine.device)

    def cut_step(step: int) -> CutStep:
        cut = Cut(capacity_tokens=start.capacity.tokens, rank=group.rank, world_size=group.world_size)
        batches = step_batches(inputs.train_set, inputs.order, inputs.model, cut, step, allocate)
        return CutStep(cut.capacity_tokens, batches)

    with Prefetcher(cut_step, range(start.state.step, inputs.total_steps)) as prefetcher:
        work = StepWork(
            engine=start.engine,
            prefetcher=prefetcher,
            stop=parts.stop,
            capacity=start.capacity,
            validation_set=inputs.validation_set,
            validation_indices=inputs.validation_indices(parts.config.validation.max_samples, parts.config.guard.keep),
            model_config=inputs.model,
            emit=parts.emit,
            speaking=recitals(
                parts.config, inputs, parts.script, None if group.rank else parts.store.storage, parts.emit
            ),
        )
        loop = TrainingLoop(
            settings,
            work,
            recording.saver,
            recording.record,
            stop=parts.stop,
            emit=parts.emit,
            clock=time.monotonic,
            risk=lambda: parts.stop.risk,
            group=group,
        )
        return loop.run(start.state, start.tags)


def _loop_settings(parts: Parts) -> LoopSettings:
    config, start = parts.config, parts.start
    return LoopSettings(
        total_steps=parts.inputs.total_steps,
        order=parts.inputs.order,
        schedule=config.schedule,
        validation=config.validation,
        validation_samples=len(parts.inputs.validation_indices(config.validation.max_samples, config.guard.keep)),
        guard=config.guard,
        speaking=config.speaking,
        records=parts.inputs.validation_records(config) if config.guard.keep else {},
        log_interval_steps=config.report.log_interval_steps,
        goals=parse_goals(config.validation.stop_unless, start.lineage.began_at),
        pace=start.pace,
        peak_tokens_per_s=_peak_tokens_per_s(parts),
        checkpointing=CheckpointingSettings(
            checkpoint=config.checkpoint,
            between_kills_s=_between_kills_s(parts),
            every_validation=bool(config.validation.command),
            # Weights and two moments, 4 bytes per value.
            estimate_s=3 * 4 * count_parameters(start.state.model) / ASSUMED_SAVE_BYTES_PER_S,
            guard=config.guard,
        ),
    )


def _peak_tokens_per_s(parts: Parts) -> float:
    """Tokens per second at the peak rate of all GPUs together; 0 when the peak of one is not known."""
    peaks = parts.group.all_gather(peak_flops(parts.facts, parts.start.plan.precision))
    return sum(peaks) / parts.inputs.mean_flops if all(peaks) else 0.0


def _between_kills_s(parts: Parts) -> float:
    """Mean time between kills in the run's record; read by rank 0 only, and only for automatic saves."""
    if parts.config.checkpoint.interval_steps != AUTOMATIC or parts.group.rank:
        return PRIOR_S
    # Without the last attempt, which is this one.
    return mean_between_kills_s(*kills(attempts(parts.store.storage)[:-1]))


def _demand_writable(run: str) -> None:
    """Check that a local run folder can be written. Creates nothing: the settings may still turn out to be wrong."""
    if not files.is_local(run):
        return
    path = files.local_path(run).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"run: {existing} is a file, expected a folder for the run. Choose another (--output-dir).")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise AccessRefusedError(
            f"run: {existing} is not writable. Choose another folder (--output-dir) or its permissions."
        )
