"""Decides whether to compile the blocks: by measuring, because it depends on the card and on the host.

Compiled blocks move less memory, which pays on cards with little bandwidth; they launch from Python, which costs on
hosts with slow processors.
"""

import time
from collections.abc import Callable

import torch

from indextts_job.model.attention import SampleEdges
from indextts_job.model.batch import PackedBatch
from indextts_job.training.engine import Engine, autocast
from indextts_job.training.step import TargetCounts, accumulate, clear_gradients, reset_step

LEAST_RUN_S = 1800.0
"""A run that takes less computing time is not worth the compilation, which takes about a quarter of a minute."""
LEAST_GAIN = 0.03
"""Share of the time that compiled blocks have to save: below it the measurement may be chance."""
COMPILED_SAMPLES, COMPILED_LENGTH = (16, 4), 448
"""The micro-batches that blocks are compiled with: usual samples, of a multiple of `LENGTH_STEP`. Two of them, because
from 4,096 tokens on the compiler adds up in another way, by a graph of its own."""
TIMED = 5
"""Micro-batches that are timed; the fastest counts, because anything else on the machine only delays."""


class CompilationError(Exception):
    """The blocks cannot be compiled on this machine."""


def compile_blocks(engine: Engine) -> None:
    """Compile the blocks now, which otherwise the first step would do. May run beside the loading of the weights.

    Args:
        engine: On the device; neither weights nor gradients are touched.

    Raises:
        CompilationError: They cannot be compiled; they run as before.
        torch.OutOfMemoryError: There is no room for one block.
    """
    transformer = engine.model.gpt
    transformer.compile_blocks()
    try:
        # The compiler takes the first lengths as a hint: it splits sums by it, and so rounds by it. So they are always
        # the same, whatever the dataset and the capacity of this attempt (I2).
        for samples in COMPILED_SAMPLES:
            _pass_through_new_block(engine, samples)
    except torch.OutOfMemoryError:
        raise
    # Whatever a compiler may raise: no C compiler on this machine, no room for its cache, a bug.
    except Exception as error:
        transformer.run_uncompiled()
        lines = str(error).strip().splitlines() or [""]
        raise CompilationError(f"{type(error).__name__}: {lines[0]:.200}") from error


def _pass_through_new_block(engine: Engine, samples: int) -> None:
    starts = torch.arange(0, samples + 1, dtype=torch.int32, device=engine.device) * COMPILED_LENGTH
    edges = SampleEdges(starts, [COMPILED_LENGTH] * samples, COMPILED_LENGTH)
    width = engine.model.final_norm.weight.numel()
    x = torch.zeros(samples * COMPILED_LENGTH, width, device=engine.device, requires_grad=True)
    with autocast(engine.device, engine.precision):
        output = engine.model.gpt.pass_through_new_block(x, edges)
    output.sum().backward()  # type: ignore[no-untyped-call]


def worth_compiling(
    engine: Engine, batch: PackedBatch, run_tokens: float, step: int, tell: Callable[[str], None]
) -> bool:
    """Whether blocks of this model run faster compiled, on this device and host.

    Args:
        engine: On a GPU; weights and moments are unchanged.
        batch: A usual micro-batch.
        run_tokens: Tokens of the whole run on this rank.
        step: The position, for `reset_step`.
        tell: Gets a line about the result.

    Raises:
        CompilationError: They cannot be compiled.
        torch.OutOfMemoryError: The micro-batch does not fit.
    """
    try:
        usual_s = _seconds(engine, batch)
        if not long_enough(usual_s / batch.num_tokens * run_tokens):
            return False
        started_s = time.monotonic()
        compile_blocks(engine)
        compiled_s = _seconds(engine, batch)
        took_s = time.monotonic() - started_s
    finally:
        engine.model.gpt.run_uncompiled()
        reset_step(engine, step)
    faster = fast_enough(compiled_s, usual_s)
    tell(
        f"compiled blocks: {1000 * compiled_s:.0f} ms for a micro-batch that takes {1000 * usual_s:.0f} ms without: "
        f"{'taken' if faster else 'not taken'} (tried in {took_s:.0f} s)"
    )
    return faster


def long_enough(run_s: float) -> bool:
    """Whether a run of so many seconds of computing earns what a compilation takes."""
    return run_s >= LEAST_RUN_S


def fast_enough(compiled_s: float, usual_s: float) -> bool:
    """Whether compiled blocks are faster by more than chance, from the seconds of one micro-batch."""
    return compiled_s < (1 - LEAST_GAIN) * usual_s


def _seconds(engine: Engine, batch: PackedBatch) -> float:
    """The fastest forward and backward pass."""
    found = []
    for _ in range(1 + TIMED):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        _accumulate(engine, batch)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started_s)
    return min(found[1:])


def _accumulate(engine: Engine, batch: PackedBatch) -> None:
    clear_gradients(engine)
    # The divisors only have to be positive: gradients of the measurement are thrown away.
    counts = TargetCounts(text=len(batch.text_targets), mel=len(batch.code_targets), tokens=batch.num_tokens)
    accumulate(engine, batch, counts)
