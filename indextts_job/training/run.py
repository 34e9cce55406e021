"""One attempt of a run, put together. Reads like a table of contents."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from indextts_job import files
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.storage import RunStorage, open_storage
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import RunConfig
from indextts_job.data.dataset import Dataset, Limits, load_dataset
from indextts_job.data.loader import Prefetcher, step_batches
from indextts_job.data.order import ORDER_VERSION, Order, derive_seed
from indextts_job.errors import EXIT_OK, EXIT_STOPPED, ConfigError, StoppedError
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.plan import HardwareFacts, Plan, make_plan
from indextts_job.model.base_checkpoint import BaseCheckpoint, carried_tensors, initialise, load_base_checkpoint
from indextts_job.model.config import GPTConfig, gpt_config
from indextts_job.model.tokenizer import Tokenizer, demand_base_pieces, load_tokenizer
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, TEXT_TABLES, Vocabulary
from indextts_job.preemption.signals import StopSignals
from indextts_job.report.console import ConsoleReport, human_bytes
from indextts_job.report.events import AttemptEnded, AttemptStarted, Emit, Notice
from indextts_job.report.journal import Journal, SampleLog
from indextts_job.report.stream import EventStream
from indextts_job.report.tensorboard import TensorBoardCurves
from indextts_job.training import resume
from indextts_job.training.history import History
from indextts_job.training.loop import LoopSettings, TrainingLoop
from indextts_job.training.resume import Present, ResumePoint, Selection
from indextts_job.training.schedule import total_steps
from indextts_job.training.state import (
    BASE,
    FIRST_MOMENT,
    WEIGHTS,
    Carried,
    TrainState,
    build_optimizer,
    count_parameters,
)
from indextts_job.training.step import Machinery
from indextts_job.training.work import AttemptWork, Saver, carried_by, environment

ASSUMED_SAVE_BYTES_PER_S = 200e6
"""Save rate until one is measured: a slow network disk. Too low only means that a cycle is discarded too early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """What the configuration names, read and checked."""

    model_document: Mapping[str, Any]
    model: GPTConfig
    tokenizer: Tokenizer
    train_set: Dataset
    validation_set: Dataset | None
    order: Order
    total_steps: int

    @property
    def longest_tokens(self) -> int:
        sets = (self.train_set, self.validation_set) if self.validation_set else (self.train_set,)
        return max(
            self.model.sample_tokens(text, codes)
            for dataset in sets
            for text, codes in zip(dataset.text_lengths, dataset.code_lengths, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """The state to begin with."""

    state: TrainState
    tags: tuple[str, ...]
    lineage: Mapping[str, Any]


def run_attempt(config: RunConfig, stop: StopSignals, console: ConsoleReport) -> int:
    """Train until the run is complete or a stop is requested.

    Args:
        config: The checked configuration.
        stop: Installed before anything slow.
        console: Shows what happens.

    Returns:
        The exit code: 0 complete, 75 stopped with everything committed.

    Raises:
        IndexTTSJobError: With the exit code of its class; the last checkpoint is intact.
    """
    stop.grace_s = config.preemption.grace_seconds
    emit = EventStream(console)
    storage = open_storage(config.run)
    _demand_writable(config.run)
    store = CheckpointStore(storage)
    inputs = _read_inputs(config, stop, emit, console)
    facts = read_facts(config.hardware.device)
    selection = resume.select(config.resume, store)
    selection = _compare(config, inputs, selection, emit)
    _check_stop(stop)
    start, plan = _build(config, inputs, facts, selection, store, emit)
    _check_stop(stop)
    attempt = Fence(storage, _attempt_record(config, facts, start.state.step))
    store.collect_orphans()
    emit(Notice(step=start.state.step, topic="run", message=f"{config.run}, attempt {attempt.attempt}"))
    emit.start(_run_readers(config, storage, attempt.attempt, inputs.train_set, start.state.step))
    saver = Saver(
        store=store,
        fence=attempt,
        attempt_start=start.state.step,
        keep=config.checkpoint.keep,
        unreadable=selection.point.unreadable if selection.point and selection.point.store is store else (),
        values=_constant_values(config, inputs, start, environment(facts, plan)),
        files={"tokenizer.model": inputs.tokenizer.content},
        emit=emit,
    )
    outcome, code, message = "failed", 70, ""
    try:
        outcome = _train(config, inputs, plan, start, saver, stop, emit)
        code = EXIT_OK if outcome == "complete" else EXIT_STOPPED
    except BaseException as error:
        code, message = getattr(error, "exit_code", 70), f"{type(error).__name__}: {error}"
        raise
    finally:
        emit(AttemptEnded(step=start.state.step, outcome=outcome, exit_code=code, message=message))
    return code


def _train(  # noqa: PLR0913  # the one place where everything meets
    config: RunConfig,
    inputs: _Inputs,
    plan: Plan,
    start: _Start,
    saver: Saver,
    stop: StopSignals,
    emit: Emit,
) -> str:
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
        checkpoint=config.checkpoint,
        log_interval_steps=config.report.log_interval_steps,
        save_estimate_s=3 * 4 * count_parameters(state.model) / ASSUMED_SAVE_BYTES_PER_S,
    )
    machinery = Machinery(
        model=state.model,
        optimizer=state.optimizer,
        scaler=state.scaler,
        device=torch.device(plan.device),
        precision=plan.precision,
        recipe=config.recipe,
        grad_clip=config.optimizer.grad_clip,
    )
    build = partial(step_batches, inputs.train_set, order, plan.capacity_tokens, inputs.model)
    with Prefetcher(build, range(state.step, inputs.total_steps)) as prefetcher:
        work = AttemptWork(
            machinery=machinery,
            prefetcher=prefetcher,
            validation_set=inputs.validation_set,
            validation_samples=validation_samples,
            capacity_tokens=plan.capacity_tokens,
            model_config=inputs.model,
            saver=saver,
        )
        emit(
            AttemptStarted(
                step=state.step,
                attempt=saver.fence.attempt,
                total_steps=inputs.total_steps,
                resumed_from=start.lineage.get("checkpoint"),
                details=saver.values["environment"],
            )
        )
        return TrainingLoop(settings, work, stop=stop, emit=emit, clock=time.monotonic).run(state, start.tags)


def _check_stop(stop: StopSignals) -> None:
    request = stop()
    if request:
        raise StoppedError(f"{request.reason} before training began: nothing to save, the last checkpoint stands.")


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


def _read_inputs(config: RunConfig, stop: StopSignals, emit: Emit, console: ConsoleReport) -> _Inputs:
    document = files.read_yaml(config.inputs.model_config, "model configuration", "inputs.model_config")
    model = gpt_config(document, config.inputs.model_config)
    tokenizer = load_tokenizer(config.inputs.tokenizer)
    limits = Limits(model, tokenizer.pieces)

    def progress(done: int, total: int) -> None:
        _check_stop(stop)
        console.progress("checking data", done, total)

    def loaded(manifests: tuple[str, ...]) -> Dataset:
        skip = config.data.skip_bad_samples
        dataset = load_dataset(manifests, limits, skip_bad_samples=skip, progress=progress)
        for sample in dataset.skipped:
            message = f"skipped bad sample {sample.id}: {sample.reason}"
            emit(Notice(step=0, topic="data", message=message, warning=True))
        return dataset

    train_set = loaded(config.data.train_manifests)
    validation_set = loaded(config.data.validation_manifests) if config.data.validation_manifests else None
    order = Order(
        num_samples=len(train_set),
        seed=config.recipe.seed,
        global_batch_samples=config.recipe.global_batch_samples,
        total_samples=len(train_set) * config.schedule.epochs,
    )
    languages = ", ".join(f"{name or 'no language'} {count}" for name, count in train_set.languages.items())
    validation = f"{len(validation_set)} to validate" if validation_set else "no validation"
    codes = sum(train_set.code_lengths)
    message = f"{len(train_set)} samples to train ({languages}; {codes / 180000:.1f} h of codes), {validation}"
    emit(Notice(step=0, topic="data", message=message))
    assert isinstance(document, Mapping)  # noqa: S101  # gpt_config has looked
    return _Inputs(
        model_document=document,
        model=model,
        tokenizer=tokenizer,
        train_set=train_set,
        validation_set=validation_set,
        order=order,
        total_steps=total_steps(order.total_steps, config.schedule),
    )


def _compare(config: RunConfig, inputs: _Inputs, selection: Selection, emit: Emit) -> Selection:
    """Decide between the exact place and weights only; say what was chosen and what changed."""
    point = selection.point
    if point is None:
        emit(Notice(step=0, topic="resume", message="no checkpoint: fresh start from the base checkpoint"))
        return selection
    for reason in point.passed_over:
        emit(Notice(step=0, topic="resume", message=f"passed over a checkpoint: {reason}", warning=True))
    for note in selection.notes:
        emit(Notice(step=point.name.step, topic="resume", message=note, warning=True))
    emit(Notice(step=point.name.step, topic="resume", message=f"checkpoint found at {point.url}"))
    values = point.manifest.values
    if extends_message := _extension(values, inputs.tokenizer):
        emit(Notice(step=0, topic="resume", message=extends_message, warning=True))
        return replace(selection, weights_only=True)
    if selection.weights_only:
        message = "weights only: moments, schedule and position start afresh"
        emit(Notice(step=0, topic="resume", message=message, warning=True))
        return selection
    present = Present(
        config=config,
        model_section=inputs.model_document["gpt"],
        tokenizer=inputs.tokenizer,
        num_samples=len(inputs.train_set),
        dataset_fingerprint=inputs.train_set.fingerprint,
    )
    for change in resume.demand_same_run(values, present, point.url):
        emit(Notice(step=point.name.step, topic="resume", message=f"changed: {change}"))
    epoch, used = inputs.order.epoch_of(point.name.step)
    message = (
        f"step {point.name.step} of {inputs.total_steps}, epoch {epoch}, {used} of {len(inputs.train_set)} samples of "
        f"it used; restored: weights, moments, history; seed {config.recipe.seed}, order {ORDER_VERSION}"
    )
    emit(Notice(step=point.name.step, topic="resume", message=message))
    return selection


def _extension(values: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    if not resume.extends_vocabulary(values, tokenizer):
        return ""
    return (
        f"the tokenizer grew from {values['tokenizer']['pieces']} to {tokenizer.pieces} pieces: the checkpoint's "
        "weights are used, new rows are initialised; moments, schedule, scaler and position start afresh together"
    )


def _build(  # noqa: PLR0913
    config: RunConfig,
    inputs: _Inputs,
    facts: HardwareFacts,
    selection: Selection,
    own: CheckpointStore,
    emit: Emit,
) -> tuple[_Start, Plan]:
    """Model, optimizer and scaler on the device, with the values of the base or of a checkpoint."""
    point = selection.point
    exact = point is not None and not selection.weights_only
    base: BaseCheckpoint | None = None
    if exact and point is not None:
        vocabulary = Vocabulary(**point.manifest.values["vocabulary"])
    else:
        base = _weights_as_base(inputs.model, point) if point else _base(config, inputs)
        vocabulary = Vocabulary(pieces=inputs.tokenizer.pieces, base_pieces=base.text_pieces)
    model = UnifiedVoice(inputs.model, vocabulary, config.recipe.dropout)
    trained = count_parameters(model)
    plan = make_plan(facts, config.hardware, inputs.model, trained, inputs.longest_tokens)
    if plan.device == "cpu":
        torch.set_num_threads(plan.threads)
    model.to(plan.device)
    state = TrainState(
        model=model,
        optimizer=build_optimizer(model, config.optimizer),
        scaler=torch.amp.GradScaler(plan.device, enabled=plan.precision == "float16"),
    )
    lineage: Mapping[str, Any] = {}
    if point is not None:
        lineage = {"run": point.store.storage.url, "checkpoint": point.url, "step": point.name.step}
        if point.store is own or point.store.storage.url == own.storage.url:
            lineage = {**point.manifest.values.get("lineage", {}), "checkpoint": point.url}
    if exact and point is not None:
        _restore(state, point, own)
    elif base is not None:
        rows = _trained_rows(point) if point else None
        initialise(model, base, config.recipe.new_rows, derive_seed(config.recipe.seed), rows)
        state.carried = Carried(tensors=carried_tensors(model, base))
    _describe(config, facts, plan, state, emit)
    tags = point.name.tags if exact and point is not None and point.store is own else ()
    return _Start(state=state, tags=tags, lineage=lineage), plan


def _base(config: RunConfig, inputs: _Inputs) -> BaseCheckpoint:
    base = load_base_checkpoint(config.inputs.base_checkpoint, inputs.model)
    demand_base_pieces(inputs.tokenizer, base.text_pieces, config.inputs.tokenizer)
    return base


def _weights_as_base(model: GPTConfig, point: ResumePoint) -> BaseCheckpoint:
    """A checkpoint's weights in the role of a base: frozen rows stay those of its own base."""
    tensors = point.store.load(point.manifest, (BASE,))
    full = {key.removeprefix(BASE): value for key, value in tensors.items()}
    full |= {
        key.removeprefix(WEIGHTS): value
        for key, value in point.tensors.items()
        if key.startswith(WEIGHTS) and not key.endswith(NEW_ROWS_SUFFIX)
    }
    return BaseCheckpoint(full, full["text_embedding.weight"].shape[0] - 1)


def _trained_rows(point: ResumePoint) -> dict[str, torch.Tensor]:
    return {
        key: point.tensors[WEIGHTS + key + NEW_ROWS_SUFFIX]
        for key in TEXT_TABLES
        if WEIGHTS + key + NEW_ROWS_SUFFIX in point.tensors
    }


def _restore(state: TrainState, point: ResumePoint, own: CheckpointStore) -> None:
    values = point.manifest.values
    state.load_weights(point.tensors)
    if any(key.startswith(FIRST_MOMENT) for key in point.tensors):
        state.load_moments(point.tensors, point.name.step)
    if values["scaler"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(values["scaler"])
    state.step = point.name.step
    state.history = History.from_json(values["history"])
    if point.store is own:
        state.carried = carried_by(point.manifest.tensors, point.manifest.objects)
    else:
        tensors = point.store.load(point.manifest, (BASE,))
        state.carried = Carried(tensors={key.removeprefix(BASE): value for key, value in tensors.items()})


def _describe(config: RunConfig, facts: HardwareFacts, plan: Plan, state: TrainState, emit: Emit) -> None:
    def say(topic: str, message: str) -> None:
        emit(Notice(step=state.step, topic=topic, message=message))

    driver = f", driver {facts.driver}" if facts.driver else ""
    say("hardware", f"{facts.name} ({facts.device}), {human_bytes(facts.memory_bytes)}, {facts.cpus} CPUs{driver}")
    say(
        "plan",
        f"global batch {config.recipe.global_batch_samples} samples in micro-batches of up to {plan.capacity_tokens} "
        f"tokens, {plan.precision}, {plan.threads} threads",
    )
    vocabulary = state.model.vocabulary
    if vocabulary.extended:
        share = 100 * vocabulary.base_pieces / vocabulary.pieces
        say(
            "vocabulary",
            f"extended from {vocabulary.base_pieces} to {vocabulary.pieces} pieces: base rows are frozen "
            f"({share:.0f} %), {vocabulary.new_rows} new rows train ({config.recipe.new_rows})",
        )
    else:
        say("vocabulary", f"{vocabulary.pieces} pieces, the base checkpoint's own: all rows train")
    say("model", f"{count_parameters(state.model) / 1e6:.1f} M trained parameters")


def _attempt_record(config: RunConfig, facts: HardwareFacts, step: int) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "node": os.uname().nodename,
        "device": facts.name,
        "step": step,
        "resume": config.resume.source,
    }


def _run_readers(
    config: RunConfig, storage: RunStorage, attempt: int, train_set: Dataset, step: int
) -> list[Emit]:
    readers: list[Emit] = [
        Journal(storage, attempt),
        TensorBoardCurves(storage, config.report.run_name, step),
    ]
    if config.report.sample_log:
        readers.append(SampleLog(storage, attempt, lambda index: train_set.records[index].id))
    return readers


def _constant_values(
    config: RunConfig, inputs: _Inputs, start: _Start, machine: Mapping[str, Any]
) -> dict[str, Any]:
    vocabulary = start.state.model.vocabulary
    return {
        "config": config.to_json(),
        "model_config": dict(inputs.model_document),
        "order": {
            "version": ORDER_VERSION,
            "seed": config.recipe.seed,
            "global_batch_samples": config.recipe.global_batch_samples,
            "num_samples": len(inputs.train_set),
            "dataset_fingerprint": inputs.train_set.fingerprint,
        },
        "total_steps": inputs.total_steps,
        "dataset": {
            "manifests": list(config.data.train_manifests),
            "languages": inputs.train_set.languages,
            "codes": sum(inputs.train_set.code_lengths),
            "skipped_samples": [sample.id for sample in inputs.train_set.skipped],
        },
        "tokenizer": {"pieces": inputs.tokenizer.pieces, "fingerprint": inputs.tokenizer.fingerprint()},
        "vocabulary": {"pieces": vocabulary.pieces, "base_pieces": vocabulary.base_pieces},
        "parameters": {"trained": count_parameters(start.state.model)},
        "lineage": dict(start.lineage),
        "environment": dict(machine),
    }
