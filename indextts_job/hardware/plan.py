"""The plan of an attempt, a pure function of hardware facts, model and configuration.

A plan never changes what a step computes (I3), only its precision and how it is cut into micro-batches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from indextts_job.bounds import Bounds
from indextts_job.checkpoint.values import Environment
from indextts_job.errors import ConfigError
from indextts_job.model.memory import Products, Recompute, Sizes, StepBytes, step_bytes

Precision = Literal["float32", "bfloat16", "float16"]

CPU_CAPACITY_TOKENS = 4096
"""On a CPU a larger micro-batch gains nothing (`bench/packing.py`)."""
MEMORY_SHARE = 0.85
"""Share of the device's memory that the plan uses; the rest is for kernels' workspace and fragmentation."""
MEASURED_SHARE = 0.9
"""Share of the device's memory to use by a measured line. The rest is for fragmentation, which the line leaves out."""
PADDED_SHARE = 0.82
"""The same where samples are padded for attention: unequal ones take up to a fifth more than the equal ones of the
measurement."""
FREE_SHARE = 0.92
"""Share of the free memory that the plan uses. It is larger, because the driver's memory is no part of the free one."""
MICRO_BATCH_TOKENS = 700
"""Cost of one more micro-batch, as the tokens that a GPU computes meanwhile: 2,000 launches, and every gradient read
and written once more. By launch counts and memory bandwidth of cards from T4 to H100, 250 to 700."""
RECOMPUTED_WORK: dict[Recompute, float] = {"nothing": 1.0, "gelu": 1.01, "blocks": 4 / 3}
"""Work of a token. With whole blocks the forward pass, a third of all work, is done twice."""
SHARED_MOMENTS_WORK = 0.1
"""Cost of shared moments, as a share of the work: each rank sends the weights that it has updated."""
ASKED: dict[str, Recompute] = {"auto": "nothing", "never": "nothing", "gelu": "gelu", "always": "blocks"}
"""What is computed again, by `hardware.recompute`; automatically, the plan may choose more."""
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
"""In the order in which GPUs learned them: processes on different GPUs use the lowest one that any of them plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareConfig:
    """How the hardware is used; by default everything is chosen automatically."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = the GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto = bfloat16 where the GPU has it, else float16 with a scaler on a GPU, float32 on a CPU."""
    capacity_tokens: Annotated[int, Bounds(0, 10**9)] = 0
    """Packed tokens per micro-batch; 0 = as many as fit: two short micro-batches at the first start show what one
    takes."""
    recompute: Literal["auto", "always", "gelu", "never"] = "auto"
    """Compute activations again in backward, not keep them: all of each block (always), or the output of its GELU;
    auto = what is fastest on this GPU. It changes no bit of the result."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Kernels that torch.compile makes for the blocks; auto = on a GPU where they are faster, which is measured at the
    first start and remembered in the run, unless the whole run takes less than half an hour."""
    shard_optimizer: Literal["auto", "always", "never"] = "auto"
    """Several processes keep the moments of a share of the weights each (ZeRO stage 1); auto = when the longest sample
    does not fit otherwise. With two processes it changes no bit, with more how the sums of gradients are rounded."""
    deterministic: bool = True
    """Only kernels that give the same bits every time, so that an interrupted run ends with the bits of one that was
    not. With false on a GPU, attention's backward pass adds up in any order: a step is then 2 % faster (H200). CPUs
    always give the same bits."""
    threads: Annotated[int, Bounds(0, 4096)] = 0
    """CPU threads of torch; 0 = OMP_NUM_THREADS where it is set, else the CPUs that this process may use, shared with
    the other processes of the node."""
    processes: Annotated[int, Bounds(0, 1024)] = 0
    """Processes on this node, each with a GPU of its own; 0 = one per visible GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareFacts:
    """The facts about one machine."""

    device: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    """Memory of the GPU, or on a CPU the host memory that the process may use."""
    bfloat16: bool
    """Whether bfloat16 is native, not emulated."""
    cpus: int
    """CPUs that the process may use, by affinity and cgroup quota."""
    threads: int = 0
    """CPU threads that the environment asks for; 0 = it asks for none."""
    driver: str = ""
    capability: str = ""
    """Compute capability of a GPU, for example "8.9"."""
    free_bytes: int = 0
    """Free memory of the GPU when the facts were read; 0 = unknown. Other processes may use the GPU too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The sizes of a training that decide about memory."""

    sizes: Sizes
    longest_tokens: int
    """Tokens of the longest sample: the capacity is never below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an attempt uses its hardware."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    capacity_tokens: int
    threads: int
    recompute: Recompute = "nothing"
    compiled: bool = False
    """Whether the blocks run kernels that torch.compile has made, which round otherwise than torch's own."""
    shard_optimizer: bool = False


def make_plan(
    facts: HardwareFacts,
    config: HardwareConfig,
    needs: Needs,
    world_size: int = 1,
) -> Plan:
    """The plan of an attempt.

    Args:
        facts: The facts about this machine.
        config: The user's configuration.
        needs: The sizes of the training.
        world_size: Number of processes that train together.

    Raises:
        ConfigError: This machine or this dataset does not allow what the configuration asks for.
    """
    _demand_possible(facts, config, needs)
    ways = _ways(_asked(facts, config, world_size), config, world_size)
    estimates = [estimated_capacity(facts, way, needs, world_size) for way in ways]
    least = config.capacity_tokens or needs.longest_tokens
    # A CPU's capacity is what is fast there, not a limit. What the user gives is the same for all ways.
    fitting = [
        (way, config.capacity_tokens or estimate)
        for way, estimate in zip(ways, estimates, strict=True)
        if estimate >= least or facts.device == "cpu"
    ]
    # If nothing fits by the estimate, the plan is tried all the same: estimates are careful, and a sample is never cut.
    chosen, tokens = min(fitting, key=_cost) if fitting else (ways[-1], estimates[-1])
    return replace(chosen, capacity_tokens=config.capacity_tokens or max(least, tokens))


def _asked(facts: HardwareFacts, config: HardwareConfig, world_size: int) -> Plan:
    """The plan that the configuration asks for, whether it fits or not."""
    return Plan(
        device=facts.device,
        precision=planned_precision(facts, config),
        capacity_tokens=config.capacity_tokens,
        threads=config.threads or facts.threads or facts.cpus,
        recompute=ASKED[config.recompute],
        shard_optimizer=config.shard_optimizer == "always" and world_size > 1,
    )


def _demand_possible(facts: HardwareFacts, config: HardwareConfig, needs: Needs) -> None:
    if config.precision == "bfloat16" and facts.device == "cuda" and not facts.bfloat16:
        raise ConfigError(
            f"hardware.precision is bfloat16, which {facts.name} (compute capability {facts.capability}) does not have."
            " Use auto, which takes float16 with a loss scale there."
        )
    longest = needs.longest_tokens
    if config.capacity_tokens and config.capacity_tokens < longest:
        raise ConfigError(
            f"hardware.capacity_tokens is {config.capacity_tokens}, but the longest sample has {longest} "
            "tokens. Use at least that, or 0 for automatic."
        )


def planned_precision(facts: HardwareFacts, config: HardwareConfig) -> Precision:
    """The precision of a training on this device alone."""
    if config.precision != "auto":
        return config.precision
    if facts.device != "cuda":
        return "float32"
    return "bfloat16" if facts.bfloat16 else "float16"


def _ways(plan: Plan, config: HardwareConfig, world_size: int) -> list[Plan]:
    """The plan, and the plans that need less memory; the one that needs least is the last."""
    ways = [plan]
    # Work that is done twice to save memory only makes sense where memory bounds the micro-batch.
    if plan.device == "cuda" and config.recompute == "auto":
        ways = [replace(plan, recompute=recompute) for recompute in RECOMPUTED_WORK]
    if config.shard_optimizer == "auto" and world_size > 1:
        ways += [replace(way, shard_optimizer=True) for way in ways]
    return ways


def _cost(estimate: tuple[Plan, int]) -> float:
    """Time of a token, relative to one without recomputation in a micro-batch without end."""
    plan, capacity_tokens = estimate
    shared = SHARED_MOMENTS_WORK if plan.shard_optimizer else 0.0
    return RECOMPUTED_WORK[plan.recompute] + shared + MICRO_BATCH_TOKENS / capacity_tokens


def in_samples(capacity_tokens: int, mean_tokens: float, global_batch_samples: int, world_size: int) -> str:
    """The size of a step in sequences and micro-batches, for users who think in batch sizes.

    Args:
        capacity_tokens: Tokens of a micro-batch.
        mean_tokens: Mean tokens of a sample.
        global_batch_samples: Samples of a step.
        world_size: Number of processes that share a step.
    """
    turns = math.ceil(global_batch_samples * mean_tokens / (capacity_tokens * world_size))
    each = global_batch_samples / (turns * world_size)
    ranks = f" x {world_size} processes" if world_size > 1 else ""
    return f"about {each:.3g} sequences x {turns} micro-batches{ranks} = global batch {global_batch_samples}"


def changes(before: Environment, facts: HardwareFacts, plan: Plan, versions: Mapping[str, Any]) -> list[str]:
    """The differences from the attempt that wrote a checkpoint, a line for each.

    Args:
        before: The environment that the checkpoint records.
        facts: The facts about this machine.
        plan: The plan of this attempt.
        versions: Versions of `torch` and `cuda` on this machine.
    """
    hardware, planned = before.hardware, before.plan
    pairs = (
        ("device", hardware.get("name"), facts.name),
        ("precision", planned.get("precision"), plan.precision),
        ("tokens per micro-batch", planned.get("capacity_tokens"), plan.capacity_tokens),
        ("compiled blocks", planned.get("compiled"), plan.compiled),
        ("torch", before.torch, versions["torch"]),
        ("CUDA", before.cuda, versions["cuda"]),
    )
    return [f"{what} {old} -> {new}" for what, old, new in pairs if old is not None and old != new]


def measured_share(facts: HardwareFacts, plan: Plan) -> float:
    """The share of the memory to use by a measurement, which is made with samples of one length."""
    return MEASURED_SHARE if _products(facts, plan) == "flash" else PADDED_SHARE


def usable_bytes(facts: HardwareFacts, share: float = MEMORY_SHARE) -> float:
    """The part of the device's memory that this process may plan with."""
    # The smaller of both: where others use the GPU, its free memory is the bound.
    usable = share * facts.memory_bytes
    return min(usable, FREE_SHARE * facts.free_bytes) if facts.free_bytes else usable


def estimated_capacity(facts: HardwareFacts, plan: Plan, needs: Needs, world_size: int) -> int:
    """Tokens of a micro-batch by a formula, used until a measurement is there."""
    if facts.device == "cpu":
        return CPU_CAPACITY_TOKENS
    found = planned_bytes(facts, plan, needs.sizes, world_size)
    return max(0, int((usable_bytes(facts) - found.fixed) / found.per_token))


def planned_bytes(facts: HardwareFacts, plan: Plan, sizes: Sizes, world_size: int = 1) -> StepBytes:
    """The memory of a step under a plan, by a formula."""
    return step_bytes(sizes, plan.recompute, _products(facts, plan), world_size if plan.shard_optimizer else 1)


def _products(facts: HardwareFacts, plan: Plan) -> Products:
    if plan.precision == "float32":
        return "float32"
    # Ampere brought both, bfloat16 and what FlashAttention needs.
    return "flash" if facts.bfloat16 else "padded"
