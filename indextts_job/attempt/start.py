"""Builds the state that the training starts with, on the device, and the objects that belong to it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from indextts_job.attempt.compiled import compiled_ahead, compiled_blocks
from indextts_job.attempt.initial_state import Origin, fill, origin_of, trained_languages
from indextts_job.attempt.inputs import Inputs
from indextts_job.attempt.machine import (
    configure_torch,
    empty_state,
    hardware_text,
    measured_capacity,
    plan_text,
    recorded_pace,
    shared_plan,
    state_must_fit,
    tell_of_changes,
)
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.values import Lineage
from indextts_job.config import RunConfig
from indextts_job.data.named_sources import short_names
from indextts_job.hardware.plan import HardwareFacts, Plan
from indextts_job.loop.capacity import Capacity
from indextts_job.model.base_checkpoint import LANGUAGE_TABLE, BaseCheckpoint
from indextts_job.model.languages import TRAINED, row_of
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.preemption.deadline import Pace
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.consistency import Check, consistency
from indextts_job.resume.points import ResumePoint
from indextts_job.resume.reference import Reference
from indextts_job.resume.select import Selection
from indextts_job.storage.urls import absolute, same_place
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import Engine
from indextts_job.training.gradients import GradientSum
from indextts_job.training.schedule import RATE_FACTOR, learning_rate
from indextts_job.training.source_losses import Sources
from indextts_job.training.state import Carried, RowFactors, TrainState, count_parameters, owners_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first state with the objects that train, check and record it."""

    state: TrainState
    engine: Engine
    reference: Reference
    checks: Iterator[Check] | None
    """Checks of a loaded state; each is computed when it is asked for. None for a fresh start."""
    plan: Plan
    capacity: Capacity
    tags: tuple[str, ...] | None
    """Tags of the checkpoint of this run that the state was loaded from; None if it came from elsewhere."""
    lineage: Lineage
    pace: Pace
    """Durations of the last attempt, if it ran on the same hardware."""
    trained_languages: tuple[str, ...]
    """Codes of the language rows that this run and those before it train."""


def build(  # noqa: PLR0913  # all by name
    config: RunConfig,
    inputs: Inputs,
    *,
    facts: HardwareFacts,
    selection: Selection,
    own: CheckpointStore,
    group: ProcessGroup,
    emit: Emit,
) -> Start:
    """Model, optimizer and scaler on the device, with the values of the base or of a checkpoint.

    Args:
        config: The checked configuration.
        inputs: The files that the configuration names.
        facts: This machine.
        selection: The checkpoint to start from, if any, and how.
        group: All ranks.
        emit: Gets lines about hardware, plan, vocabulary and model.
    """
    origin = origin_of(config, inputs, selection, emit)
    model = UnifiedVoice(inputs.model, origin.vocabulary, config.recipe.dropout, origin.adapter)
    plan = shared_plan(facts, config.hardware, inputs, model, group)
    owners = owners_of(model, group.world_size)
    configure_torch(config.hardware, plan)
    mine = [owner == group.rank for owner in owners]
    sharded = owners if plan.shard_optimizer else ()
    with state_must_fit(facts, plan, model.sizes, group.world_size):
        factors = RowFactors(pieces=config.schedule.new_rows_factor, languages=config.adapter.rows_factor)
        state = empty_state(model, plan, config.optimizer, factors, mine, moments_loaded=origin.holds_moments)
        gradients = GradientSum(state.model.parameters(), group, sharded)
    engine = Engine(
        model=state.model,
        optimizer=state.optimizer,
        scaler=state.scaler,
        device=torch.device(plan.device),
        precision=plan.precision,
        recipe=config.recipe,
        grad_clip=config.optimizer.grad_clip,
        group=group,
        owners=sharded,
        gradients=gradients,
        sources=_sources(inputs),
    )
    may_recompute = config.hardware.recompute == "auto"
    capacity = Capacity(plan, inputs.longest, own.storage, facts, may_recompute=may_recompute)
    state.model.gpt.recompute = capacity.recompute  # what is computed again is part of what is compiled
    ahead = compiled_ahead(capacity, config.hardware, engine)
    fill(state, origin, config.recipe, own, inputs.slots)
    if group.rank:
        state.carried = Carried()  # rank 0 writes the base tensors; the others free their memory
    _set_last_rate(state, config, inputs.total_steps)
    # After the state is filled: the measurements need the memory of weights and moments in use.
    compiled = compiled_blocks(
        ahead=ahead,
        capacity=capacity,
        config=config.hardware,
        inputs=inputs,
        samples=config.recipe.global_batch_samples / group.world_size,
        engine=engine,
        step=state.step,
        emit=emit,
    )
    capacity = measured_capacity(capacity, config.hardware, inputs, engine, state.step, emit)
    # Checkpoints record the plan, so it has to hold what is really used.
    plan = replace(plan, capacity_tokens=capacity.tokens, recompute=capacity.recompute, compiled=compiled)
    _describe(config, facts, plan, state, emit)
    if origin.base and origin.base.version.language_rows:
        emit(Notice(step=state.step, topic="languages", message=_languages_text(state, origin.base, inputs.slots)))
    values = origin.point.manifest.values if origin.point else None
    if values:
        tell_of_changes(values, facts, plan, state.step, emit)
    reference = Reference.of(inputs.train_set, inputs.model, values.reference if values else None)
    return Start(
        state=state,
        engine=engine,
        reference=reference,
        checks=consistency(state, engine, reference, values, origin.point.tensors) if origin.point and values else None,
        plan=plan,
        capacity=capacity,
        tags=_tags(origin, own, state),
        lineage=_lineage(origin, selection.point, own, state.step),
        pace=recorded_pace(values, facts, group.world_size),
        trained_languages=trained_languages(origin, inputs),
    )


def _sources(inputs: Inputs) -> Sources | None:
    names = short_names(inputs.sources.names)
    return Sources(tuple(names), inputs.train_set.part_of) if names else None


def _set_last_rate(state: TrainState, config: RunConfig, total_steps: int) -> None:
    """Set the rate of the last update, which checkpoints record; another attempt may have made that update."""
    if not state.step:
        return
    rate = learning_rate(state.step - 1, total_steps, config.schedule)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate * parameters[RATE_FACTOR]


def _tags(origin: Origin, own: CheckpointStore, state: TrainState) -> tuple[str, ...] | None:
    if origin.point and origin.point.store is own:
        return origin.point.name.tags
    return None if state.step else ()


def _lineage(origin: Origin, point: ResumePoint | None, own: CheckpointStore, step: int) -> Lineage:
    """The checkpoint that the attempt resumes from, and the run that this one was started from."""
    if origin.source:
        return Lineage(run=absolute(origin.source), step=step)
    if point is None:
        return Lineage()
    if same_place(point.store.storage.url, own.storage.url):
        # The origin is passed on from checkpoint to checkpoint: `by +N` goals count from it.
        return replace(point.manifest.values.lineage, checkpoint=point.url)
    return Lineage(run=absolute(point.store.storage.url), checkpoint=point.url, step=point.name.step)


def _describe(config: RunConfig, facts: HardwareFacts, plan: Plan, state: TrainState, emit: Emit) -> None:
    lines = {
        "hardware": hardware_text(facts),
        "plan": plan_text(
            plan,
            deterministic=config.hardware.deterministic,
            global_batch_samples=config.recipe.global_batch_samples,
        ),
        "vocabulary": _vocabulary_text(state, config.recipe.new_rows),
        "model": f"{state.model.version}, {count_parameters(state.model) / 1e6:.1f} M trained parameters",
    }
    for topic, message in lines.items():
        emit(Notice(step=state.step, topic=topic, message=message))


def _languages_text(state: TrainState, base: BaseCheckpoint, slots: Collection[str]) -> str:
    """The norms of the rows in use, beside those of the languages that the release was trained on."""
    # Rows of a release that nobody has trained may hold anything. A norm far from the others' shows it.
    table = base.tensors[LANGUAGE_TABLE]

    def norm(row: Tensor) -> str:
        return f"{row.detach().float().norm().item():.2f}"

    others = ", ".join(f"{code} {norm(table[row_of(code)])}" for code in TRAINED)
    used = ", ".join(
        f"{code} (row {row_of(code)}) {norm(state.model.language_row(row_of(code)))}, in the base checkpoint "
        f"{norm(table[row_of(code)])}"
        for code in slots
    )
    return (
        f"norms of the rows in use: {used}; of the languages of the release: {others}. Where a language is new, "
        "recipe.language_start says what its row starts as; `own` is the row of the base checkpoint"
    )


def _vocabulary_text(state: TrainState, new_rows: str) -> str:
    vocabulary = state.model.vocabulary
    if not vocabulary.extended and state.model.adapter:
        return f"{vocabulary.pieces} pieces, the base checkpoint's own: constant, as all of the base"
    if not vocabulary.extended:
        return f"{vocabulary.pieces} pieces, the base checkpoint's own: all rows train"
    share = 100 * vocabulary.base_pieces / vocabulary.pieces
    return (
        f"extended from {vocabulary.base_pieces} to {vocabulary.pieces} pieces: base rows are frozen "
        f"({share:.0f} %), {vocabulary.new_rows} new rows train ({new_rows})"
    )
