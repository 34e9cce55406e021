"""Decides, once for a run and a kind of GPU, whether its blocks are compiled; and has them compiled."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from indextts_job.attempt.inputs import Inputs
from indextts_job.background import begin
from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.loop.capacity import Capacity
from indextts_job.model.batch import PackedBatch
from indextts_job.report.events import Emit, Notice
from indextts_job.training.compilation import CompilationError, compile_blocks, worth_compiling
from indextts_job.training.engine import Engine
from indextts_job.training.probe import uniform_batch

if TYPE_CHECKING:
    from concurrent.futures import Future

JUDGED_TOKENS = 32768
"""Most tokens of the micro-batch by which compiled blocks are judged; larger ones only take longer."""
COMPILE_S = 120.0
"""Limit of the wait for a compilation, which takes about ten seconds; a compiler that hangs ends no training."""


def compiled_ahead(capacity: Capacity, config: HardwareConfig, engine: Engine) -> "Future[None] | None":
    """Begin to compile the blocks while the weights are loaded, where it is known that they will be compiled.

    Args:
        capacity: Knows the decision of earlier attempts.
        config: Settings of the user.
        engine: The engine, on the device; its weights need no values.

    Returns:
        None where it is not known, or known that they will not be.
    """
    if engine.device.type != "cuda" or not _wanted(capacity, config):
        return None
    index = torch.cuda.current_device()

    def run() -> None:
        torch.cuda.set_device(index)  # a property of the thread
        compile_blocks(engine)

    return begin(run, "compile")


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of one rank."""

    wanted: bool | None
    """None where there was no memory to find out."""
    refused: str = ""
    """Why the blocks cannot be compiled here."""


def compiled_blocks(  # noqa: PLR0913  # all by name
    *,
    ahead: "Future[None] | None",
    capacity: Capacity,
    config: HardwareConfig,
    inputs: Inputs,
    samples: float,
    engine: Engine,
    step: int,
    emit: Emit,
) -> bool:
    """Compile the blocks if that is asked for, or faster; equal on all ranks, and for all attempts on such a device.

    Args:
        ahead: The result of `compiled_ahead`.
        capacity: Remembers the decision.
        config: Settings of the user.
        inputs: The lengths of a usual sample, and the steps of the run.
        samples: Samples of a step on one rank.
        engine: The engine, on the device.
        step: The position.
        emit: Gets a line about the result.

    Returns:
        Whether the blocks are compiled.

    Raises:
        ConfigError: It is asked for, and not possible on every rank.
    """

    def tell(message: str) -> None:
        emit(Notice(step=step, topic="plan", message=message))

    if engine.device.type != "cuda":
        if config.compile == "always":
            tell("blocks are not compiled: hardware.compile is for GPUs")
        return False

    def measured() -> bool:
        step_tokens = samples * inputs.mean_tokens
        # As large as those of the training: small ones are bound by the launches of the host, in either way.
        batch = _usual_batch(inputs, min(capacity.tokens, int(step_tokens), JUDGED_TOKENS))
        return worth_compiling(engine, batch, step_tokens * inputs.total_steps, step, tell)

    own = Decision(_wanted(capacity, config))
    try:
        if ahead:
            ahead.result(COMPILE_S)
        elif own.wanted is None:
            own = Decision(measured())
    except (CompilationError, TimeoutError) as error:
        found = str(error) or f"it takes more than {COMPILE_S:.0f} s."
        own = Decision(wanted=False, refused=found)
        tell(f"blocks are not compiled: {found}")
    except torch.OutOfMemoryError:
        # The estimated capacity is too high, which says nothing about compiled blocks: the next attempt looks again.
        pass
    return agreed(own, capacity, config, engine)


def agreed(own: Decision, capacity: Capacity, config: HardwareConfig, engine: Engine) -> bool:
    """Compile the blocks on all ranks or on none. All come to this point: a missing one would be waited for.

    Args:
        own: The decision of this rank.
        capacity: Remembers the decision of all.
        config: Settings of the user.
        engine: Its group decides; its blocks are compiled by the next forward pass, if they are not yet.

    Returns:
        Whether all ranks want compiled blocks.

    Raises:
        ConfigError: The user wants them always, and a rank cannot compile.
    """
    by_all = engine.group.all_reduce_min(int(bool(own.wanted))) > 0
    undecided = engine.group.any_rank(own.wanted is None)
    if config.compile == "always" and not by_all:
        found = own.refused or "another rank says why."
        raise ConfigError(f"hardware.compile is always, but compiling fails: {found} Use auto.")
    if by_all:
        engine.model.gpt.compile_blocks()
    else:
        engine.model.gpt.run_uncompiled()
    # An earlier decision stays: a node without a compiler, or an exceptional setting, is no reason to change the bits
    # of all attempts that follow.
    if config.compile == "auto" and capacity.compiled is None and not undecided:
        capacity.remember_compiled(by_all)
    return by_all


def _wanted(capacity: Capacity, config: HardwareConfig) -> bool | None:
    """Whether the user or an earlier attempt wants compiled blocks; None if neither says so."""
    asked = {"always": True, "never": False}.get(config.compile)
    return capacity.compiled if asked is None else asked


def _usual_batch(inputs: Inputs, tokens: int) -> PackedBatch:
    """A micro-batch of usual samples with at most so many tokens, and at least one sample."""
    count = max(1, tokens // inputs.model.sample_tokens(*inputs.usual))
    return uniform_batch(inputs.model, inputs.usual, count)
