"""One attempt of a run, put together. Reads like a table of contents."""

import math
import os
import time
from dataclasses import dataclass
from functools import partial

import torch

from indextts_job.attempt.inputs import Inputs, check_stop, read_inputs, warnings_of
from indextts_job.attempt.records import Laps, attempt_record, constant_values, environment, run_readers
from indextts_job.attempt.start import Start, build, compare
from indextts_job.background import begin
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.schema import demand_storable
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import RunConfig
from indextts_job.data.loader import Prefetcher, step_batches
from indextts_job.data.packing import Cut
from indextts_job.errors import (
    EXIT_OK,
    EXIT_SOFTWARE,
    EXIT_STOPPED,
    ConfigError,
    UnavailableError,
)
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.peak import peak_flops
from indextts_job.hardware.plan import HardwareFacts, in_samples
from indextts_job.legacy.discovery import is_old_checkpoint
from indextts_job.loop.interval import PRIOR_S, mean_between_kills_s
from indextts_job.loop.loop import LoopSettings, TrainingLoop
from indextts_job.loop.save_interval import AUTOMATIC
from indextts_job.loop.saver import BackgroundSaver, SaverSettings
from indextts_job.loop.saves import SavesSettings
from indextts_job.loop.work import AttemptWork, CutStep
from indextts_job.preemption.exit_guard import ExitGuard
from indextts_job.preemption.signals import StopSignals
from indextts_job.redaction import redacted
from indextts_job.report.attempts import attempts, previous_end
from indextts_job.report.console import ConsoleReport
from indextts_job.report.events import AttemptEnded, AttemptStarted, Emit, Notice
from indextts_job.report.goodput import kills
from indextts_job.report.stream import EventStream
from indextts_job.resume import select as resume
from indextts_job.resume.policy import admit
from indextts_job.resume.shared_objects import Repaired, repair
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.distributed import ProcessGroup, joined, read_world
from indextts_job.training.quality import parse_goals
from indextts_job.training.state import count_parameters
from indextts_job.waiting import result

ASSUMED_SAVE_BYTES_PER_S = 200e6
"""Save rate until one is measured: a slow network disk. Too low only means that a cycle is discarded too early."""


def run_attempt(
    config: RunConfig,
    stop: StopSignals,
    console: ConsoleReport,
    started_at_s: float | None = None,
    guard: ExitGuard | None = None,
) -> int:
    """Train until the run is complete or a stop is requested.

    Args:
        config: The checked configuration.
        stop: Installed before anything slow.
        console: Shows what happens.
        started_at_s: Instant of the monotonic clock at which the process began, for the account of the start-up.
        guard: Told in which phase the attempt is.

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
    storage = open_storage(config.run, config.storage)
    _demand_writable(config.run)
    store = CheckpointStore(storage)
    # While the data is read and checked: the device's context, and the checkpoint to go on from.
    reading_facts = begin(lambda: read_facts(config.hardware.device, world.local_rank, world.local_world_size), "facts")
    mend = repair(config.inputs.base_checkpoint, config.inputs.tokenizer)
    selecting = begin(lambda: resume.select(config.resume, store, mend), "checkpoint")
    from_base = config.resume.source in ("auto", "own", "none") or is_old_checkpoint(config.resume.source)
    inputs = read_inputs(config, stop, emit, console, needs_base=from_base and not store.names())
    demand_storable(config.to_json(), "the configuration")
    demand_storable(inputs.model_document, config.inputs.model_config)
    for warning in warnings_of(config, inputs):
        emit(Notice(step=0, topic="settings", message=warning, warning=True))
    laps.done("inputs and data")
    facts = result(reading_facts, lambda: check_stop(stop))
    if facts.device == "cuda":
        torch.cuda.set_device(world.local_rank)
    selection = compare(config, inputs, result(selecting, lambda: check_stop(stop)), emit)
    step = selection.point.name.step if selection.point and not selection.weights_only else 0
    begin(
        lambda: inputs.train_set.samples(inputs.order.samples_of(step).tolist()), "first data"
    )  # the cache begins to fill
    check_stop(stop)
    laps.done("checkpoint")

    def tell(message: str) -> None:
        emit(Notice(step=step, topic="ranks", message=message, warning=True))

    with joined(world, facts.device, tell) as group:
        start = build(config, inputs, facts=facts, selection=selection, own=store, group=group, emit=emit)
        check_stop(stop)
        laps.done("model")
        if start.checks:
            admit(start.checks, config.resume.checks, stop, emit, start.state.step)
            laps.done("checks")
        _demand_same_start(group, start.state.step)
        parts = _Parts(
            config=config,
            inputs=inputs,
            facts=facts,
            start=start,
            stop=stop,
            emit=emit,
            group=group,
            saver_group=group.new_group(),
            guard=guard or ExitGuard(stop),
        )
        code = _follow(parts, store) if group.rank else _lead(parts, store, selection, laps, mend)
        # Nobody ends before the last save is done: launchers take the first end of a rank for that of all.
        group.any_rank(False)  # noqa: FBT003  # a barrier
        return code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What an attempt is made of, ready to train."""

    config: RunConfig
    inputs: Inputs
    facts: HardwareFacts
    start: Start
    stop: StopSignals
    emit: EventStream
    group: ProcessGroup
    saver_group: ProcessGroup
    guard: ExitGuard


def _follow(parts: _Parts, store: CheckpointStore) -> int:
    """Train as another rank than 0: says nothing, and writes its share of the checkpoints."""
    saver = BackgroundSaver(store, None, parts.saver_group, parts.stop)
    with parts.guard.training():
        try:
            code = _exit_code(_train(parts, saver))
        except BaseException:
            saver.finished(wait_s=math.inf)
            raise
        parts.guard.leaves(code)
        return code


def _lead(parts: _Parts, store: CheckpointStore, selection: resume.Selection, laps: Laps, mend: resume.Repair) -> int:
    """Train as rank 0, the only writer of the run (I5)."""
    config, inputs, start, emit, storage = parts.config, parts.inputs, parts.start, parts.emit, store.storage
    step = start.state.step
    record = attempt_record(
        facts=parts.facts,
        world_size=parts.group.world_size,
        step=step,
        resume=config.resume.source,
        launched=laps.began(),
        previous=previous_end(storage),
    )
    attempt = Fence(storage, record)
    _tidy(store, emit)
    emit(Notice(step=step, topic="run", message=f"{config.run}, attempt {attempt.attempt}"))
    laps.done("run folder")
    samples = config.recipe.global_batch_samples
    shape = in_samples(start.capacity.tokens, inputs.mean_tokens, samples, parts.group.world_size)
    emit(Notice(step=step, topic="plan", message=shape))
    emit(Notice(step=step, topic="start-up", message=str(laps)))
    emit.start(run_readers(config, storage, attempt.attempt, inputs.train_set, step))
    settings = SaverSettings(
        fence=attempt,
        attempt_start=step,
        keep=config.checkpoint.keep,
        unreadable=selection.point.unreadable if selection.point and selection.point.store is store else (),
        values=constant_values(config, inputs, start, environment(parts.facts, start.plan, parts.group.world_size)),
        files={"tokenizer.model": inputs.tokenizer.content},
        emit=emit,
        audit=partial(_audit, store, mend),
    )
    saver = BackgroundSaver(store, settings, parts.saver_group, parts.stop)
    emit(
        AttemptStarted(
            step=step,
            attempt=attempt.attempt,
            total_steps=inputs.total_steps,
            resumed_from=start.lineage.get("checkpoint"),
            details=settings.values["environment"],
        )
    )
    outcome, code, message = "failed", EXIT_SOFTWARE, ""
    with parts.guard.training():
        try:
            outcome = _train(parts, saver)
            code = _exit_code(outcome)
        except BaseException as error:
            code, message = getattr(error, "exit_code", EXIT_SOFTWARE), f"{type(error).__name__}: {error}"
            outcome = "stopped" if code == EXIT_STOPPED else outcome
            # What was saved behind the training is worth finishing, whatever went wrong in front of it.
            saver.finished(wait_s=math.inf)
            raise
        finally:
            parts.guard.leaves(code)
            emit(AttemptEnded(step=start.state.step, outcome=outcome, exit_code=code, message=redacted(message)))
            storage.flush()
    return code


def _exit_code(outcome: str) -> int:
    return EXIT_OK if outcome == "complete" else EXIT_STOPPED


def _demand_same_start(group: ProcessGroup, step: int) -> None:
    """All ranks look for the newest checkpoint by themselves, in the same moment.

    Raises:
        UnavailableError: They found different ones.
    """
    steps = set(group.all_gather(step))
    if len(steps) > 1:
        found = ", ".join(map(str, sorted(steps)))
        raise UnavailableError(f"the ranks would start from different steps: {found}. Start again.")


def _train(parts: _Parts, saver: BackgroundSaver) -> str:
    config, inputs, start, emit, group = parts.config, parts.inputs, parts.start, parts.emit, parts.group
    state, order = start.state, inputs.order
    validation_samples = 0
    if inputs.validation_set:
        validation_samples = len(inputs.validation_set)
        if config.validation.max_samples:
            validation_samples = min(validation_samples, config.validation.max_samples)
    settings = LoopSettings(
        total_steps=inputs.total_steps,
        order=order,
        schedule=config.schedule,
        validation=config.validation,
        validation_samples=validation_samples,
        log_interval_steps=config.report.log_interval_steps,
        goals=parse_goals(config.validation.stop_unless, start.lineage.get("step", 0)),
        pace=start.pace,
        peak_tokens_per_s=_peak_tokens_per_s(parts),
        saves=SavesSettings(
            checkpoint=config.checkpoint,
            between_kills_s=_between_kills_s(parts, saver),
            estimate_s=3 * 4 * count_parameters(state.model) / ASSUMED_SAVE_BYTES_PER_S,
        ),
    )
    capacity = start.capacity

    def build(step: int) -> CutStep:
        cut = Cut(capacity_tokens=capacity.tokens, rank=group.rank, world_size=group.world_size)
        return CutStep(cut.capacity_tokens, step_batches(inputs.train_set, order, inputs.model, cut, step))

    with Prefetcher(build, range(state.step, inputs.total_steps)) as prefetcher:
        work = AttemptWork(
            engine=start.engine,
            prefetcher=prefetcher,
            stop=parts.stop,
            capacity=capacity,
            validation_set=inputs.validation_set,
            validation_samples=validation_samples,
            model_config=inputs.model,
            saver=saver,
            reference=start.reference,
            emit=emit,
        )
        loop = TrainingLoop(
            settings, work, stop=parts.stop, emit=emit, clock=time.monotonic, risk=lambda: parts.stop.risk, group=group
        )
        return loop.run(state, start.tags)


def _peak_tokens_per_s(parts: _Parts) -> float:
    """What the ranks' GPUs could do if they did nothing but the model's operations; 0 when that is not known."""
    peaks = parts.group.all_gather(peak_flops(parts.facts, parts.start.plan.precision))
    return sum(peaks) / parts.inputs.mean_flops if all(peaks) else 0.0


def _between_kills_s(parts: _Parts, saver: BackgroundSaver) -> float:
    """By the run's own record; looked up only where saves go by it, and by rank 0, which decides."""
    if parts.config.checkpoint.interval_steps != AUTOMATIC or parts.group.rank:
        return PRIOR_S
    return mean_between_kills_s(*kills(attempts(saver.storage)[:-1]))


def _audit(store: CheckpointStore, mend: resume.Repair) -> Repaired:
    """Compare and mend what the newest checkpoint shares with all others."""
    newest = store.newest()
    return mend(store, newest) if newest else Repaired()


def _tidy(store: CheckpointStore, emit: Emit) -> None:
    try:
        store.collect_orphans()
    # Tidying is best effort: a store may lack the request for it, or hold what nobody can read.
    except Exception as error:  # noqa: BLE001
        message = f"left-over objects of interrupted saves were not removed: {error}"
        emit(Notice(step=0, topic="checkpoint", message=message, warning=True))


def _demand_writable(run: str) -> None:
    """Find out before hours of work that a local run folder cannot be written; creates nothing."""
    if not files.is_local(run):
        return
    path = files.local_path(run).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"run: {existing} is a file, expected a folder for the run. Choose another (--output-dir).")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"run: {existing} is not writable. Choose another folder (--output-dir) or its permissions.")
