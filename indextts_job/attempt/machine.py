"""Determines how this attempt computes: the plan that all ranks share, and the capacity of this device."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from indextts_job.attempt.inputs import Inputs
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import DeviceMemoryError
from indextts_job.hardware.memory import MemoryLine
from indextts_job.hardware.plan import (
    PRECISIONS,
    RECOMPUTED_WORK,
    HardwareConfig,
    HardwareFacts,
    Needs,
    Plan,
    changes,
    make_plan,
    planned_bytes,
)
from indextts_job.loop.capacity import Capacity
from indextts_job.model.memory import Recompute, Sizes
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.preemption.deadline import Pace
from indextts_job.report.console import human_bytes
from indextts_job.report.events import MEMORY, Emit, Notice
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import Engine
from indextts_job.training.probe import CudaMeter, measured_line
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import RowFactors, TrainState, build_optimizer


def shared_plan(
    facts: HardwareFacts, config: HardwareConfig, inputs: Inputs, model: UnifiedVoice, group: ProcessGroup
) -> Plan:
    """The plan of this attempt. Fields that must be equal on all ranks are."""
    needs = Needs(sizes=model.sizes, longest_tokens=inputs.longest[0])
    return agreed_plan(make_plan(facts, config, needs, group.world_size), group)


def agreed_plan(plan: Plan, group: ProcessGroup) -> Plan:
    """A common plan for GPUs that may differ.

    Gradients are summed over all ranks, so every rank computes in the lowest precision that any of them needs.

    Args:
        plan: The plan of this rank alone.
        group: All ranks.
    """
    return replace(
        plan,
        precision=PRECISIONS[group.all_reduce_min(PRECISIONS.index(plan.precision))],
        recompute=most_recomputed(plan.recompute, group),
        shard_optimizer=group.any_rank(plan.shard_optimizer),
    )


def most_recomputed(own: Recompute, group: ProcessGroup) -> Recompute:
    """What the rank with the least memory computes again, so that all ranks run the same kernels."""
    order: list[Recompute] = list(RECOMPUTED_WORK)
    return order[-group.all_reduce_min(-order.index(own))]


@contextlib.contextmanager
def state_must_fit(facts: HardwareFacts, plan: Plan, sizes: Sizes, world_size: int) -> Iterator[None]:
    """Turn an out of memory inside into an error that says what the state takes."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        taken = human_bytes(int(planned_bytes(facts, plan, sizes, world_size).fixed))
        raise DeviceMemoryError(
            f"weights, gradients and moments do not fit the memory of {facts.name}: training takes {taken} before the "
            f"first sample, of {human_bytes(facts.memory_bytes)}. Use a larger GPU, or several, or free what others "
            "use (nvidia-smi). The last checkpoint is intact."
        ) from error


def empty_state(
    model: UnifiedVoice,
    plan: Plan,
    optimizer: OptimizerConfig,
    factors: RowFactors,
    owned: Sequence[bool],
    *,
    moments_loaded: bool = False,
) -> TrainState:
    """A state on the device, with all its memory allocated and without values.

    Args:
        model: The model, on the host.
        plan: Device and precision.
        optimizer: Settings of the optimizer.
        factors: Learning rates of rows that train by themselves.
        owned: For each parameter, whether this rank writes it to checkpoints (and updates it, if moments are sharded).
        moments_loaded: The moments are loaded behind this call; otherwise they are zero.
    """
    model.to(plan.device)
    # Also without sharded moments each rank writes only its part: writes of all ranks run in parallel.
    own = {name for (name, _), mine in zip(model.named_parameters(), owned, strict=True) if mine}
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            model, optimizer, own if plan.shard_optimizer else None, factors, loaded=moments_loaded
        ),
        scaler=torch.amp.GradScaler(plan.device, enabled=plan.precision == "float16"),
        own=own,
    )


def configure_torch(config: HardwareConfig, plan: Plan) -> None:
    """Set threads and determinism of this process."""
    if plan.device == "cpu":
        torch.set_num_threads(plan.threads)
    if config.deterministic:
        # cuBLAS reads it at its first call; torch names this value and raises without one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Set, and not left to what the environment says: TF32 has 10 bits, and float32 is chosen by who wants 23.
    torch.set_float32_matmul_precision("highest")
    # Without it some backward kernels add in any order, and a repeated step differs in its last bits (I2). The other
    # function for it imports the compiler, which takes a second of the start; `compile_blocks` calls that one.
    torch.set_deterministic_debug_mode("error" if config.deterministic else "default")
    # It would also fill all new memory, so that a program that reads it before it writes gives the same bits. That
    # doubles the launches of a step, and no kernel here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # its module is not typed


def measured_capacity(
    capacity: Capacity, config: HardwareConfig, inputs: Inputs, engine: Engine, step: int, emit: Emit
) -> Capacity:
    """Replace the estimate by a measurement, on GPUs and unless the user has set a capacity; equal on all ranks.

    Args:
        capacity: The estimate, or the capacity of an earlier attempt on this kind of device.
        config: Settings of the user.
        inputs: The lengths of a usual sample and of the longest one.
        engine: The engine, on the device.
        emit: Gets a line about the result.
    """
    model, group = engine.model, engine.group

    def measured() -> MemoryLine | None:
        model.gpt.recompute = capacity.recompute
        model.train()
        return measured_line(engine, inputs.model, inputs.usual, inputs.longest[0], CudaMeter(), step)

    if engine.device.type == "cuda" and not config.capacity_tokens:
        moments = f"moments shared by {group.world_size}" if engine.owners else "all moments"
        # All settings that change the bytes per token: a stored measurement holds only for the same ones.
        compiled = ", compiled" if model.gpt.compiled else ""
        what = f"{engine.precision}, dropout {engine.recipe.dropout:g}, {moments}{compiled}, torch {torch.__version__}"
        if message := capacity.measure(what, measured):
            emit(Notice(step=step, topic=MEMORY, message=message))
    # Every rank cuts every step by itself, so all need the same capacity.
    capacity.tokens = group.all_reduce_min(capacity.tokens)
    capacity.recompute = most_recomputed(capacity.recompute, group)
    model.gpt.recompute = capacity.recompute
    if capacity.limited:
        emit(Notice(step=step, topic=MEMORY, message=capacity.limited))
    return capacity


def recorded_pace(values: CheckpointValues | None, facts: HardwareFacts, world_size: int) -> Pace:
    """The pace of the attempt that saved a checkpoint, if it ran on equal hardware; otherwise unknown."""
    if values is None or values.pace is None:
        return Pace()
    then = values.environment
    # The cut into micro-batches depends on both, and with it the duration of one.
    same = then.hardware.get("name") == facts.name and then.world_size == world_size
    return values.pace if same else Pace()


def tell_of_changes(values: CheckpointValues, facts: HardwareFacts, plan: Plan, step: int, emit: Emit) -> None:
    """Report the differences from the machine that saved the checkpoint."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if changed := changes(values.environment, facts, plan, versions):
        message = f"since the checkpoint: {', '.join(changed)}; the samples of each step are the same"
        emit(Notice(step=step, topic="plan", message=message))


def plan_text(plan: Plan, *, deterministic: bool, global_batch_samples: int) -> str:
    """The plan in one line."""
    further = {
        "no TF32": plan.precision == "float32" and plan.device == "cuda",
        "activations are computed again": plan.recompute == "blocks",
        "GELUs are computed again": plan.recompute == "gelu",
        "compiled blocks": plan.compiled,
        "deterministic kernels": deterministic,
        "moments shared among the processes": plan.shard_optimizer,
    }
    return ", ".join(
        [
            f"global batch {global_batch_samples} samples in micro-batches of up to {plan.capacity_tokens} tokens",
            plan.precision,
            f"{plan.threads} threads",
            *(text for text, applies in further.items() if applies),
        ]
    )


def hardware_text(facts: HardwareFacts) -> str:
    """The device in one line."""
    driver = f", compute capability {facts.capability}, driver {facts.driver}" if facts.driver else ""
    return f"{facts.name} ({facts.device}), {human_bytes(facts.memory_bytes)}, {facts.cpus} CPUs{driver}"
