"""How this hardware runs the job: a pure function of facts, model and configuration.

A plan never changes what a step computes (I3), only how it is cut and in which precision.
"""

from dataclasses import dataclass
from typing import Literal

from indextts_job.errors import ConfigError
from indextts_job.model.config import GPTConfig

Precision = Literal["float32", "bfloat16", "float16"]

CPU_CAPACITY_TOKENS = 4096
"""On a CPU a larger micro-batch gains nothing (`bench/packing.py`)."""
MEMORY_SHARE = 0.85
"""Share of the device's memory that the plan uses; the rest is for kernels' workspace and fragmentation."""
ACTIVATION_BYTES_PER_WIDTH = 34
"""Bytes of activations per token, layer and unit of width in 16-bit training with fused attention: Korthikanti et
al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1 without its attention term."""
STATE_BYTES_PER_PARAMETER = 16
"""float32 weight, gradient and two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareConfig:
    """Wishes about the hardware; everything may stay automatic."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = the GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto = bfloat16 where the GPU has it, else float16 with a scaler on a GPU, float32 on a CPU."""
    capacity_tokens: int = 0
    """Packed tokens per micro-batch; 0 = from the memory of the device."""
    threads: int = 0
    """CPU threads of torch; 0 = the CPUs that this process may use, shared with the other processes of the node."""
    processes: int = 0
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
    driver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an attempt computes."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    capacity_tokens: int
    threads: int


def make_plan(
    facts: HardwareFacts,
    config: HardwareConfig,
    model: GPTConfig,
    trained_parameters: int,
    longest_tokens: int,
) -> Plan:
    """The plan for one attempt.

    Args:
        facts: What is here.
        config: What the user wishes.
        model: Shapes, for the memory that a token takes.
        trained_parameters: Number of trained weights.
        longest_tokens: The longest sample; the capacity is never below it.

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
    if config.capacity_tokens and config.capacity_tokens < longest_tokens:
        raise ConfigError(
            f"hardware.capacity_tokens is {config.capacity_tokens}, but the longest sample has {longest_tokens} "
            "tokens. Use at least that, or 0 for automatic."
        )
    capacity = config.capacity_tokens or max(
        longest_tokens, _automatic_capacity(facts, model, trained_parameters, precision)
    )
    return Plan(
        device=facts.device,
        precision=precision,
        capacity_tokens=capacity,
        threads=config.threads or facts.cpus,
    )


def _automatic_capacity(facts: HardwareFacts, model: GPTConfig, trained_parameters: int, precision: Precision) -> int:
    if facts.device == "cpu":
        return CPU_CAPACITY_TOKENS
    per_token = ACTIVATION_BYTES_PER_WIDTH * model.model_dim * model.layers * (2 if precision == "float32" else 1)
    free = MEMORY_SHARE * facts.memory_bytes - STATE_BYTES_PER_PARAMETER * trained_parameters
    return max(0, int(free / per_token))
