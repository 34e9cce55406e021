"""Checks that what was loaded is what was saved. They run before the first step after a resume and change nothing.

A checkpoint's bytes are verified when they are read. These checks cover the steps after that: the state is on the
device, moments belong to their weights, and the model computes the losses that the checkpoint records for a few
samples.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from indextts_job.checkpoint.tensor_names import BASE
from indextts_job.checkpoint.values import CheckpointValues, ReferenceLosses
from indextts_job.model.base_checkpoint import all_finite
from indextts_job.resume.reference import Reference
from indextts_job.training.engine import Engine
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import TrainState

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Relative tolerance of a loss that another device or another cut computes: about 100 units in the last place of each
precision in the activations. A wrong tensor changes the loss by whole numbers."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    passed: bool
    found: str


def consistency(
    state: TrainState,
    engine: Engine,
    reference: Reference,
    values: CheckpointValues,
    frozen: Mapping[str, Tensor],
) -> Iterator[Check]:
    """Check a loaded state. A generator: each check is computed when it is asked for, so it can be reported at once.

    Args:
        state: The state, on the device.
        engine: Computes the losses.
        reference: Samples whose losses the checkpoint records.
        values: The values that the checkpoint records.
        frozen: Frozen text tables of the checkpoint, by full name (`base/…`).
    """
    # The loss first: it covers all weights at once.
    yield _computes_the_same(engine, reference, values.reference)
    yield _finite(state)
    yield _frozen(state, frozen)
    yield _moments(state)
    yield _position(state, values)
    yield _rate(state, values)


def _computes_the_same(engine: Engine, reference: Reference, recorded: ReferenceLosses | None) -> Check:
    if recorded is None:
        return Check("loss", passed=True, found="not recorded by the version that saved it")
    now = reference.losses(engine)
    if now is None:
        return Check("loss", passed=True, found="no memory to compute it")
    # The coarser of both precisions: one of the two losses was computed in it.
    tolerance = max(TOLERANCES[engine.precision], TOLERANCES.get(recorded.precision, 0.0))
    pairs = (("text_loss", recorded.text_loss, now.text_loss), ("mel_loss", recorded.mel_loss, now.mel_loss))
    # Relative differences; the small divisor keeps a loss of 0 from dividing by zero.
    differences = [abs(after - before) / max(abs(before), 1e-12) for _, before, after in pairs]
    # Not `max` of them alone: it passes over what is not a number, unless that comes first.
    within = all(difference <= tolerance for difference in differences)
    shown = ", ".join(f"{name} {before:.6g} then, {after:.6g} now" for name, before, after in pairs)
    same = recorded.samples == now.samples
    text = f"{shown}: {max(differences):.2g} apart, {tolerance:.2g} allowed" + ("" if same else "; of other samples")
    return Check("loss", passed=same and within, found=text)


def _finite(state: TrainState) -> Check:
    bad = [name for name, value in state.model.named_parameters() if not all_finite(value)]
    count = len(list(state.model.parameters()))
    text = f"{', '.join(bad[:3])} of {count} tensors hold NaN or infinity" if bad else f"{count} tensors finite"
    return Check("weights", not bad, text)


def _frozen(state: TrainState, tables: Mapping[str, Tensor]) -> Check:
    rows = 0
    for name, value in state.model.named_buffers():
        kept = tables[BASE + name]
        # Compared in the type of the model, into which the table was converted on its way to the device.
        moved = (value.detach().cpu() != kept.to(value.dtype)).reshape(len(kept), -1).any(dim=1)
        if bool(moved.any()):
            return Check("frozen rows", passed=False, found=f"{name}: row {int(moved.nonzero()[0])} has moved")
        rows += len(kept)
    return Check("frozen rows", passed=True, found=f"{rows} rows bit for bit" if rows else "none in this run")


def _moments(state: TrainState) -> Check:
    names = {id(value): name for name, value in state.model.named_parameters()}
    for value, kept in state.optimizer.state.items():
        if problem := _moment_problem(value, kept, state.step):
            name = names.get(id(value), "a tensor that is not in the model")
            return Check("moments", passed=False, found=f"{name}: {problem}")
    text = f"of {len(state.optimizer.state)} tensors, {state.step} updates each"
    return Check("moments", passed=True, found=text)


def _moment_problem(value: Tensor, kept: Mapping[str, Tensor], step: int) -> str:
    """The problem with the moments of one parameter; empty without one."""
    first, second = kept["exp_avg"], kept["exp_avg_sq"]
    if first.shape != value.shape or second.shape != value.shape:
        return "shapes differ"
    if int(kept["step"]) != step:
        return f"{int(kept['step'])} updates, step {step}"
    if not all_finite(first) or not all_finite(second):
        return "NaN or infinity"
    return "a negative second moment" if bool(second.min() < 0) else ""


def _position(state: TrainState, values: CheckpointValues) -> Check:
    order = values.order
    expected = state.step * order.global_batch_samples
    # An upper bound only: the last step of a run may be short, also in a run that was prolonged afterwards.
    passed = state.step <= values.total_steps and 0 < state.history.samples <= max(expected, 1)
    text = f"step {state.step} x {order.global_batch_samples} samples, {state.history.samples} used"
    return Check("position", passed, text)


def _rate(state: TrainState, values: CheckpointValues) -> Check:
    """The rate of the last update: the recorded one, and the one by the schedule of that attempt."""
    recorded = values.learning_rate
    if recorded is None or not state.step:
        return Check("learning rate", passed=True, found="a function of the step")
    # The schedule that the checkpoint records, not the present one: the user may have changed that on purpose.
    known = {entry.name for entry in fields(ScheduleConfig)}
    recorded_schedule = values.config_section("schedule")
    schedule = ScheduleConfig(**{key: value for key, value in recorded_schedule.items() if key in known})
    now = learning_rate(state.step - 1, values.total_steps, schedule)
    passed = math.isclose(recorded, now, rel_tol=1e-9)
    return Check("learning rate", passed, f"{recorded:.6g} of the last update, {now:.6g} by the schedule")
