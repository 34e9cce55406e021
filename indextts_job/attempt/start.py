"""The state to begin with: from the base checkpoint, or from a checkpoint of this or another run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from indextts_job.attempt.inputs import Inputs
from indextts_job.attempt.takeover import install, take_over
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import RunConfig
from indextts_job.data.order import ORDER_VERSION, derive_seed
from indextts_job.errors import UnavailableError
from indextts_job.hardware.memory import MemoryLine
from indextts_job.hardware.plan import PRECISIONS, HardwareFacts, Needs, Plan, changes, make_plan
from indextts_job.loop.capacity import Capacity
from indextts_job.loop.saver import carried_by
from indextts_job.model.base_checkpoint import BaseCheckpoint, carried_tensors, initialise, split_rows
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, TEXT_TABLES, Vocabulary
from indextts_job.preemption.deadline import Pace
from indextts_job.report.console import human_bytes
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.compatibility import Present, demand_same_run, extends_vocabulary
from indextts_job.resume.consistency import Check, Reference, consistency
from indextts_job.resume.select import ResumePoint, Selection, absolute
from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.history import History
from indextts_job.training.probe import CudaMeter, measured_line
from indextts_job.training.schedule import RATE_FACTOR, learning_rate
from indextts_job.training.state import (
    BASE,
    FIRST_MOMENT,
    WEIGHTS,
    Carried,
    TrainState,
    build_optimizer,
    count_parameters,
    owners_of,
)
from indextts_job.training.step import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The state to begin with."""

    state: TrainState
    engine: Engine
    reference: Reference
    checks: Iterator[Check] | None
    """Of a state that was loaded, made while they are asked for."""
    plan: Plan
    capacity: Capacity
    tags: tuple[str, ...] | None
    """Of the run's checkpoint that the state was loaded from; None for what came from another run or trainer."""
    lineage: Mapping[str, Any]
    pace: Pace
    """Of the last attempt, if it ran on the same hardware."""


def compare(config: RunConfig, inputs: Inputs, selection: Selection, emit: Emit) -> Selection:
    """Decide between the exact place and weights only; say what was chosen and what changed."""
    point = selection.point
    if point is None:
        for note in selection.notes:
            emit(Notice(step=0, topic="resume", message=note, warning=True))
        if not selection.legacy:
            emit(Notice(step=0, topic="resume", message="no checkpoint: fresh start from the base checkpoint"))
        return selection
    for reason in point.passed_over:
        emit(Notice(step=0, topic="resume", message=f"passed over a checkpoint: {reason}", warning=True))
    for note in (*point.repaired, *selection.notes):
        emit(Notice(step=point.name.step, topic="resume", message=note, warning=True))
    if not point.repaired and (lost := point.store.missing(point.manifest)):
        message = (
            f"{len(lost)} objects of the checkpoint are lost or cut, {lost[0].key} among them. Training does not need "
            "them, an export does: restore them from a copy of the run."
        )
        emit(Notice(step=point.name.step, topic="resume", message=message, warning=True))
    emit(Notice(step=point.name.step, topic="resume", message=f"checkpoint found at {point.url}"))
    values = point.manifest.values
    if growth := _extension(values, inputs.tokenizer):
        emit(Notice(step=0, topic="resume", message=growth, warning=True))
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
    for change in demand_same_run(values, present, point.url):
        emit(Notice(step=point.name.step, topic="resume", message=f"changed: {change}"))
    epoch, used = inputs.order.epoch_of(point.name.step)
    message = (
        f"step {point.name.step} of {inputs.total_steps}, epoch {epoch}, {used} of {len(inputs.train_set)} samples of "
        f"it used; restored: weights, moments, history; seed {config.recipe.seed}, order {ORDER_VERSION}"
    )
    emit(Notice(step=point.name.step, topic="resume", message=message))
    return selection


def _extension(values: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    if not extends_vocabulary(values, tokenizer):
        return ""
    return (
        f"the tokenizer grew from {values['tokenizer']['pieces']} to {tokenizer.pieces} pieces: the checkpoint's "
        "weights are used, new rows are initialised; moments, schedule, scaler and position start afresh together"
    )


def build(  # noqa: PLR0913  # it puts together what the attempt has, by name
    config: RunConfig,
    inputs: Inputs,
    *,
    facts: HardwareFacts,
    selection: Selection,
    own: CheckpointStore,
    group: ProcessGroup,
    emit: Emit,
) -> Start:
    """Model, optimizer and scaler on the device, with the values of the base or of a checkpoint."""
    point = None if selection.weights_only else selection.point
    donor = selection.point if selection.weights_only else None
    base, rows = (_weights_as_base(donor), _trained_rows(donor)) if donor else (inputs.base, {})
    if base and not donor and not selection.legacy:
        base, rows = split_rows(base)
    imported, origin = None, ""
    if selection.legacy and base:
        base, imported, origin = take_over(config, inputs, selection, base, emit)
    if point:
        vocabulary = Vocabulary(**point.manifest.values["vocabulary"])
    elif base:
        vocabulary = Vocabulary(pieces=inputs.tokenizer.pieces, base_pieces=base.text_pieces)
    else:
        raise UnavailableError(f"{config.run}: its checkpoints vanished while it was being started. Start again.")
    model = UnifiedVoice(inputs.model, vocabulary, config.recipe.dropout)
    plan = agreed_plan(make_plan(facts, config.hardware, _needs(inputs, model), group.world_size), group)
    owners = owners_of(model, group.world_size)
    state = _empty_state(config, model, plan, [owner == group.rank for owner in owners])
    if point:
        _restore(state, point, own)
    elif imported:
        install(state, imported, config.recipe.global_batch_samples)
    elif base:
        initialise(model, base, config.recipe.new_rows, derive_seed(config.recipe.seed), rows)
        state.carried = Carried(tensors=carried_tensors(model, base))
    if group.rank:
        state.carried = Carried()  # the base's tensors are written by rank 0
    if state.step:  # as after the last update, which may have been another attempt's
        rate = learning_rate(state.step - 1, inputs.total_steps, config.schedule)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = rate * parameters[RATE_FACTOR]
    engine = Engine(
        model=state.model,
        optimizer=state.optimizer,
        scaler=state.scaler,
        device=torch.device(plan.device),
        precision=plan.precision,
        recipe=config.recipe,
        grad_clip=config.optimizer.grad_clip,
        group=group,
        owners=owners if plan.shard_optimizer else (),
    )
    capacity = _capacity(Capacity(plan, inputs.longest, own.storage, facts), config, inputs, engine, state, emit)
    plan = replace(plan, capacity_tokens=capacity.tokens, recompute=capacity.recompute)
    _describe(config, facts, plan, state, emit)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if point and (changed := changes(point.manifest.values["environment"], facts, plan, versions)):
        message = f"since the checkpoint: {', '.join(changed)}; the samples of each step are the same"
        emit(Notice(step=state.step, topic="plan", message=message))
    reference = Reference.of(inputs.train_set, inputs.model)
    checks = consistency(state, engine, reference, point.manifest.values, point.tensors) if point else None
    fresh: tuple[str, ...] | None = None if state.step else ()
    tags = point.name.tags if point and point.store is own else fresh
    lineage = {"run": absolute(origin), "step": state.step} if origin else _lineage(selection.point, own)
    return Start(
        state=state,
        engine=engine,
        reference=reference,
        checks=checks,
        plan=plan,
        capacity=capacity,
        tags=tags,
        lineage=lineage,
        pace=_recorded_pace(point, facts, group.world_size),
    )


def _recorded_pace(point: ResumePoint | None, facts: HardwareFacts, world_size: int) -> Pace:
    """Of the attempt that saved a checkpoint, where it says something about this one."""
    values = point.manifest.values if point else {}
    then = values.get("environment", {})
    same = then.get("hardware", {}).get("name") == facts.name and then.get("world_size") == world_size
    return Pace(**values["pace"]) if same and "pace" in values else Pace()


def _capacity(  # of one place above
    capacity: Capacity, config: RunConfig, inputs: Inputs, engine: Engine, state: TrainState, emit: Emit
) -> Capacity:
    """Measured where that is possible and nobody has set it; the same on all ranks."""
    model, group = engine.model, engine.group

    def measured() -> MemoryLine | None:
        model.gpt.recompute = capacity.recompute
        model.train()
        return measured_line(engine, inputs.model, inputs.usual, inputs.longest[0], CudaMeter(), state.step)

    if engine.device.type == "cuda" and not config.hardware.capacity_tokens:
        shared = f"moments shared by {group.world_size}" if engine.owners else "all moments"
        what = f"{engine.precision}, dropout {config.recipe.dropout:g}, {shared}"
        if message := capacity.measure(what, measured, may_recompute=config.hardware.recompute == "auto"):
            emit(Notice(step=state.step, topic="memory", message=message))
    capacity.tokens = group.all_reduce_min(capacity.tokens)
    capacity.recompute = group.any_rank(capacity.recompute)
    model.gpt.recompute = capacity.recompute
    return capacity


def _needs(inputs: Inputs, model: UnifiedVoice) -> Needs:
    return Needs(model=inputs.model, trained_parameters=count_parameters(model), longest_tokens=inputs.longest[0])


def _empty_state(config: RunConfig, model: UnifiedVoice, plan: Plan, owned: Sequence[bool]) -> TrainState:
    """On the device, with memory for everything, and no values yet."""
    if plan.device == "cpu":
        torch.set_num_threads(plan.threads)
    if config.hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is used first
    torch.use_deterministic_algorithms(config.hardware.deterministic)
    model.to(plan.device)
    own = {name for (name, _), mine in zip(model.named_parameters(), owned, strict=True) if mine}
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            model, config.optimizer, own if plan.shard_optimizer else None, config.schedule.new_rows_factor
        ),
        scaler=torch.amp.GradScaler(plan.device, enabled=plan.precision == "float16"),
        own=own,
    )


def agreed_plan(plan: Plan, group: ProcessGroup) -> Plan:
    """One plan for GPUs that need not be alike: gradients are added up, so all compute in the same precision.

    Args:
        plan: Of this rank.
        group: All of them.
    """
    return replace(
        plan,
        precision=PRECISIONS[group.all_reduce_min(PRECISIONS.index(plan.precision))],
        recompute=group.any_rank(plan.recompute),
        shard_optimizer=group.any_rank(plan.shard_optimizer),
    )


def _lineage(point: ResumePoint | None, own: CheckpointStore) -> dict[str, Any]:
    """Which checkpoint the attempt goes on from, and which other run this one came from."""
    if point is None:
        return {}
    if point.store.storage.url == own.storage.url:
        return {**point.manifest.values["lineage"], "checkpoint": point.url}
    return {"run": absolute(point.store.storage.url), "checkpoint": point.url, "step": point.name.step}


def _weights_as_base(point: ResumePoint) -> BaseCheckpoint:
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

    again = ", activations are computed again" if plan.recompute else ""
    again += ", deterministic kernels" if config.hardware.deterministic else ""
    again += ", moments shared among the processes" if plan.shard_optimizer else ""
    driver = f", compute capability {facts.capability}, driver {facts.driver}" if facts.driver else ""
    say(
        "hardware",
        f"{facts.name} ({facts.device}), {human_bytes(facts.memory_bytes)}, {facts.cpus} CPUs{driver}",
    )
    say(
        "plan",
        f"global batch {config.recipe.global_batch_samples} samples in micro-batches of up to {plan.capacity_tokens} "
        f"tokens, {plan.precision}, {plan.threads} threads{again}",
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
