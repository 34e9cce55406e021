"""Launches, host waits and allocations of one training step of the released model, as a table.

    python -m tests.gpu_stand_in.counts [--kernels]

Launch counts, not times: they come from a stand-in for the CUDA runtime, on which no kernel computes anything. The
environment of `make stand-in-env` is needed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from tests.gpu_stand_in.cards import H100, L4, T4, Card
from tests.gpu_stand_in.environment import StandIn, missing, started, temporary

SAMPLES = 32
ONE_MICRO_BATCH = 65_536
"""Tokens that all samples of a step fit into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a step is computed."""

    precision: str = "bfloat16"
    deterministic: bool = True
    dropout: float = 0.1
    capacity_tokens: int = ONE_MICRO_BATCH
    recompute: str = "nothing"
    layers: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a step asks the card for."""

    micro_batches: int
    tokens: int
    launches: int
    """Kernels, GEMMs and memsets."""
    head_launches: int
    """Those of both heads and their backward passes."""
    waits: int
    """Calls in which the host waits for the card."""
    waits_in_loop: int
    """Those between the first micro-batch and the last one."""
    pageable_in_loop: int
    """Copies there from or to memory that is not pinned, which wait too."""
    allocations: int
    """Calls for memory of the card; the steps before have filled torch's cache."""
    gemm_tflop: float
    peak_bytes: int
    most_launched: Sequence[tuple[str, int]] = field(repr=False)


def counted(stand_in: StandIn, card: Card, way: Way) -> Counts:
    """Count one step in a process of its own.

    Raises:
        RuntimeError: With what the process said.
    """
    arguments = ("-m", "tests.gpu_stand_in.counts", "--measure", json.dumps(asdict(way)))
    with started(stand_in.variables(card), *arguments) as child:
        output, _ = child.communicate(timeout=300)
    if child.returncode:
        raise RuntimeError(output)
    return Counts(**json.loads(output.splitlines()[-1]))


def measured(way: Way) -> Counts:
    """Count the third step, in this process."""
    # These need the other environment.
    import torch

    from bench.gpu_setting import packed
    from bench.workload import FULL, engine, tokens_of, utterances
    from indextts_job.hardware.facts import read_facts
    from indextts_job.model import unified_voice
    from indextts_job.training.step import train_step
    from tests.gpu_stand_in.recording import mark, part, seen

    read_facts("cuda")  # chooses how torch allocates
    config = replace(FULL, layers=way.layers)
    torch.use_deterministic_algorithms(way.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with torch.device("cuda"):  # on the stand-in weights take time only on the host
        own = engine(
            config,
            pieces=config.number_text_tokens,
            base_pieces=config.number_text_tokens,
            dropout=way.dropout,
            device="cuda",
            precision=way.precision,  # type: ignore[arg-type]
        )
    own.model.gpt.recompute = way.recompute  # type: ignore[assignment]
    samples = utterances(SAMPLES, config)
    batches = packed(samples, config, way.capacity_tokens)

    def discard(_left: int) -> bool:
        mark()
        return False

    def step(number: int) -> None:
        train_step(own, batches, number, 1e-4, discard)

    # The first allocates, and leaves the cache of the allocator so that the second may need a little more.
    step(0)
    step(1)
    torch.cuda.reset_peak_memory_stats()
    with part(unified_voice, "head_loss", 1):
        record = seen(lambda: step(2))
    loop = record.between_marks()
    return Counts(
        micro_batches=len(batches),
        tokens=sum(tokens_of(sample, config) for sample in samples),
        launches=record.launches(),
        head_launches=record.launches(part=1),
        waits=record.count("wait"),
        waits_in_loop=loop.count("wait"),
        pageable_in_loop=loop.count("to_device_pageable") + loop.count("to_host_pageable"),
        allocations=record.count("allocation"),
        gemm_tflop=record.amount("gemm") / 1e12,
        peak_bytes=torch.cuda.max_memory_allocated(),
        most_launched=record.most_launched(25),
    )


ROWS = (
    ("H100, bfloat16, one micro-batch", H100, Way()),
    ("H100, the same, any kernels", H100, Way(deterministic=False)),
    ("H100, the same, GELUs recomputed", H100, Way(recompute="gelu")),
    ("L4, bfloat16, 4,096 tokens", L4, Way(capacity_tokens=4096)),
    ("T4, float16, 4,096 tokens, GELUs recomp.", T4, Way(precision="float16", capacity_tokens=4096, recompute="gelu")),
)


def table(*, kernels: bool) -> Iterator[str]:
    """Its lines, as they come.

    Args:
        kernels: Name the most launched kernels of each step too.
    """
    yield "launch counts, not times: one step of 32 utterances, 24 layers of width 1,280"
    yield "                                        micro-   launches          waits"
    yield f"{'':<40}{'batches':>7}{'all':>8}{'heads':>7}{'all':>7}{'between':>9}{'GEMM TFLOP':>12}{'peak GB':>9}"
    with temporary() as stand_in:
        for name, card, way in ROWS:
            found = counted(stand_in, card, way)
            yield (
                f"{name:<40}{found.micro_batches:>7}{found.launches:>8}{found.head_launches:>7}{found.waits:>7}"
                f"{found.waits_in_loop:>9}{found.gemm_tflop:>12.1f}{found.peak_bytes / 1e9:>9.1f}"
            )
            if kernels:
                yield from (f"{times:>8} {kernel}" for kernel, times in found.most_launched)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)  # in the process under the stand-in
    parser.add_argument("--kernels", action="store_true", help="name the most launched kernels of each step")
    given = parser.parse_args()
    if not given.measure and (reason := missing()):
        sys.exit(reason)
    lines = (
        [json.dumps(asdict(measured(Way(**json.loads(given.measure)))))]
        if given.measure
        else table(kernels=given.kernels)
    )
    for line in lines:
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
