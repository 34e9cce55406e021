"""How this hardware runs the job: a pure function of facts, model and configuration.

A plan never changes what a step computes (I3), only how it is cut and in which precision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from indextts_job.bounds import Bounds
from indextts_job.checkpoint.values import Environment
from indextts_job.errors import ConfigError
from indextts_job.model.config import GPTConfig

Precision = Literal["float32", "bfloat16", "float16"]

CPU_CAPACITY_TOKENS = 4096
"""On a CPU a larger micro-batch gains nothing (`bench/packing.py`)."""
MEMORY_SHARE = 0.85
"""Share of the device's memory that the plan uses; the rest is for kernels' workspace and fragmentation."""
FREE_SHARE = 0.92
"""The same of what is free, where others have taken some of it: the driver's own share is out already."""
ACTIVATION_BYTES_PER_WIDTH = 34
"""Bytes of activations per token, layer and unit of width in 16-bit training with fused attention: Korthikanti et
al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1 without its attention term."""
WEIGHT_BYTES_PER_PARAMETER, MOMENT_BYTES_PER_PARAMETER = 8, 8
"""float32 weight and gradient; two moments, which several processes may share among them."""
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
"""What a GPU can compute in, the oldest ones' first: processes on unlike GPUs take what all of them can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareConfig:
    """Wishes about the hardware; everything may stay automatic."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = the GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto = bfloat16 where the GPU has it, else float16 with a scaler on a GPU, float32 on a CPU."""
    capacity_tokens: Annotated[int, Bounds(0, 10**9)] = 0
    """Packed tokens per micro-batch; 0 = as many as fit: two short micro-batches at the first start show what one
    takes."""
    recompute: Literal["auto", "always", "never"] = "auto"
    """Compute activations again in backward, not keep them; auto = when the longest sample does not fit otherwise."""
    shard_optimizer: Literal["auto", "always", "never"] = "auto"
    """Several processes keep the moments of a share of the weights each (ZeRO stage 1); auto = when the longest sample
    does not fit otherwise. It changes no bit of the result."""
    deterministic: bool = False
    """Only kernels that give the same bits every time: on a GPU some of the fastest add up in any order. CPUs always
    give the same bits."""
    threads: Annotated[int, Bounds(0, 4096)] = 0
    """CPU threads of torch; 0 = OMP_NUM_THREADS where it is set, else the CPUs that this process may use, shared with
    the other processes of the node."""
    processes: Annotated[int, Bounds(0, 1024)] = 0
    """Processes on this node, each with a GPU of its own; 0 = one per visible GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareFacts:
    """What one machine has."""

    device: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    """Of the GPU, or of the host that the process may use."""
    bfloat16: bool
    """Whether bfloat16 is native, not emulated."""
    cpus: int
    """CPUs that the process may use, by affinity and cgroup quota."""
    threads: int = 0
    """CPU threads that the environment asks for; 0 = it does not say."""
    driver: str = ""
    capability: str = ""
    """Compute capability of a GPU: "8.9", say."""
    free_bytes: int = 0
    """Of the GPU's memory, when it was looked at; 0 = not known. Others may use it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What is to be computed."""

    model: GPTConfig
    """Shapes, for the memory that a token takes."""
    trained_parameters: int
    longest_tokens: int
    """Of the longest sample: the capacity is never below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an attempt computes."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    capacity_tokens: int
    threads: int
    recompute: bool = False
    shard_optimizer: bool = False


def make_plan(
    facts: HardwareFacts,
    config: HardwareConfig,
    needs: Needs,
    world_size: int = 1,
) -> Plan:
    """The plan for one attempt.

    Args:
        facts: What is here.
        config: What the user wishes.
        needs: What is to be computed.
        world_size: Processes that train together.

    Raises:
        ConfigError: A wish that this machine or this dataset cannot fulfil.
    """
    if config.device == "cuda" and facts.device != "cuda":
        raise ConfigError("hardware.device is cuda, but torch sees no GPU here. Check the driver, or use auto.")
    precision: Precision = "float32"
    if config.precision != "auto":
        precision = config.precision
    elif facts.device == "cuda":
        precision = "bfloat16" if facts.bfloat16 else "float16"
    longest = needs.longest_tokens
    if config.capacity_tokens and config.capacity_tokens < longest:
        raise ConfigError(
            f"hardware.capacity_tokens is {config.capacity_tokens}, but the longest sample has {longest} "
            "tokens. Use at least that, or 0 for automatic."
        )
    plan = Plan(
        device=facts.device,
        precision=precision,
        capacity_tokens=config.capacity_tokens,
        threads=config.threads or facts.threads or facts.cpus,
        recompute=config.recompute == "always",
        shard_optimizer=config.shard_optimizer == "always" and world_size > 1,
    )
    # The cheap way to fit comes first: a share of the moments costs a broadcast, recomputation a third of the speed.
    ways = [plan]
    if config.shard_optimizer == "auto" and world_size > 1:
        ways.append(replace(ways[-1], shard_optimizer=True))
    if config.recompute == "auto":
        ways.append(replace(ways[-1], recompute=True))
    estimates = [(way, way.capacity_tokens or estimated_capacity(facts, way, needs, world_size)) for way in ways]
    chosen, tokens = next((found for found in estimates if found[1] >= longest), estimates[-1])
    return replace(chosen, capacity_tokens=max(longest, tokens))


def in_samples(capacity_tokens: int, mean_tokens: float, global_batch_samples: int, world_size: int) -> str:
    """The shape of a step in the words of those who count sequences.

    Args:
        capacity_tokens: Of a micro-batch.
        mean_tokens: Of a sample.
        global_batch_samples: Samples of a step.
        world_size: Processes that share it.
    """
    turns = math.ceil(global_batch_samples * mean_tokens / (capacity_tokens * world_size))
    each = global_batch_samples / (turns * world_size)
    ranks = f" x {world_size} processes" if world_size > 1 else ""
    return f"about {each:.3g} sequences x {turns} micro-batches{ranks} = global batch {global_batch_samples}"


def changes(before: Environment, facts: HardwareFacts, plan: Plan, versions: Mapping[str, Any]) -> list[str]:
    """What is different from the attempt that wrote a checkpoint, for people.

    Args:
        before: As that checkpoint records it.
        facts: What is here.
        plan: Made from it.
        versions: Of `torch` and `cuda` here.
    """
    hardware, planned = before.hardware, before.plan
    pairs = (
        ("device", hardware.get("name"), facts.name),
        ("precision", planned.get("precision"), plan.precision),
        ("tokens per micro-batch", planned.get("capacity_tokens"), plan.capacity_tokens),
        ("torch", before.torch, versions["torch"]),
        ("CUDA", before.cuda, versions["cuda"]),
    )
    return [f"{what} {old} -> {new}" for what, old, new in pairs if old is not None and old != new]


def usable_bytes(facts: HardwareFacts, share: float = MEMORY_SHARE) -> float:
    """Of the device's memory, for this process."""
    usable = share * facts.memory_bytes
    return min(usable, FREE_SHARE * facts.free_bytes) if facts.free_bytes else usable


def estimated_capacity(facts: HardwareFacts, plan: Plan, needs: Needs, world_size: int) -> int:
    """Tokens of a micro-batch, by arithmetic: what is planned with until it is measured."""
    if facts.device == "cpu":
        return CPU_CAPACITY_TOKENS
    wide = 2 if plan.precision == "float32" else 1
    model = needs.model
    per_token = ACTIVATION_BYTES_PER_WIDTH * model.model_dim * model.layers * wide
    if plan.recompute:  # the float32 input of every block, and all of the one that is computed again
        per_token = (4 * model.layers + ACTIVATION_BYTES_PER_WIDTH * wide) * model.model_dim
    moments = MOMENT_BYTES_PER_PARAMETER / (world_size if plan.shard_optimizer else 1)
    free = usable_bytes(facts) - (WEIGHT_BYTES_PER_PARAMETER + moments) * needs.trained_parameters
    return max(0, int(free / per_token))
