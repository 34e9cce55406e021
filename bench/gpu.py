"""The released model on this GPU: speed against the padded formulation, memory against the plan, bits, out of memory.

The rival is the public trainer's formulation with the batch size that its table has for this much memory. Same
weights, samples and optimizer, one process, by turns.

    python -m bench.gpu [--samples 64] [--rounds 5] [--peak-tflops 989] [--compile]
    python -m bench.gpu --small                 the same code on a CPU and a small model; its figures mean nothing
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch

from bench.packing import batched_attention, padded
from bench.timing import alternate
from bench.workload import FULL, PIECES, engine, model_config, tokens_of, utterances
from indextts_job.data.packing import pack
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.memory import MEASURED_SHARE
from indextts_job.hardware.peak import peak_flops
from indextts_job.hardware.plan import HardwareConfig, Needs, Plan, make_plan, usable_bytes
from indextts_job.model import transformer
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.model.flops import training_flops
from indextts_job.report.console import human_bytes
from indextts_job.training.engine import Engine
from indextts_job.training.probe import CudaMeter, measured_line
from indextts_job.training.state import count_parameters
from indextts_job.training.step import reset_step, train_step

RIVAL_BATCH = ((70, 64), (35, 16), (20, 8), (15, 6), (0, 2))
"""Samples per batch by GiB of memory: the public trainer's table."""


def batches_of(samples: list[Sample], config: GPTConfig, capacity: int) -> list[PackedBatch]:
    """A step, packed."""
    bins = pack([tokens_of(sample, config) for sample in samples], capacity)
    return [collate([samples[slot] for slot in slots], config) for slots in bins]


def synchronised(work: Callable[[], object], device: str) -> Callable[[], None]:
    """Work that has ended on the device too."""

    def run() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def speed(parts: Callable[[], Engine], samples: list[Sample], config: GPTConfig, plan: Plan, rounds: int) -> float:
    """Print packed against padded; returns packed real tokens per second."""
    memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if plan.device == "cuda" else 0
    size = next(batch for gib, batch in RIVAL_BATCH if memory_gib >= gib)
    groups = [padded(samples[i : i + size], config) for i in range(0, len(samples), size)]
    packed = batches_of(samples, config, plan.capacity_tokens)
    real = sum(batch.num_tokens for batch in packed)
    ours, theirs = parts(), parts()

    def train_padded() -> None:
        with mock.patch.object(transformer, "packed_causal_attention", batched_attention):
            train_step(theirs, groups, 0, 1e-4)

    seconds = alternate(
        {
            "padded": synchronised(train_padded, plan.device),
            "packed": synchronised(lambda: train_step(ours, packed, 0, 1e-4), plan.device),
        },
        rounds,
    )
    for name, batches in (("padded", groups), ("packed", packed)):
        rows = sum(batch.num_tokens for batch in batches)
        print(f"{name:<28}{real / seconds[name]:>12.0f} real tokens/s{rows - real:>10} rows of padding")
    print(f"{'ratio':<28}{seconds['padded'] / seconds['packed']:>12.2f}")
    return real / seconds["packed"]


def other_ways(parts: Callable[[], Engine], batches: list[PackedBatch], rounds: int, *, compiled: bool) -> None:
    """Print what deterministic kernels cost, and what torch.compile gives, against the usual way."""
    device = parts().device.type
    usual, strict, faster = parts(), parts(), parts() if compiled else None

    def deterministic() -> None:
        torch.use_deterministic_algorithms(mode=True)
        train_step(strict, batches, 0, 1e-4)
        torch.use_deterministic_algorithms(mode=False)

    ways: dict[str, Callable[[], object]] = {
        "usual": lambda: train_step(usual, batches, 0, 1e-4),
        "deterministic": deterministic,
    }
    if faster:
        faster.model.gpt.compile(dynamic=True)
        ways["compiled"] = lambda: train_step(faster, batches, 0, 1e-4)
    seconds = alternate({name: synchronised(way, device) for name, way in ways.items()}, rounds)
    for name in list(ways)[1:]:
        print(f"{name:<28}{seconds['usual'] / seconds[name]:>12.2f} of the usual speed")


def same_bits(parts: Callable[[], Engine], batches: list[PackedBatch]) -> bool:
    """Whether three steps, done twice, give the same weights (I2)."""
    found = []
    for _ in range(2):
        own = parts()
        for step in range(3):
            train_step(own, batches, step, 1e-4)
        found.append(torch.cat([p.detach().flatten().cpu() for p in own.model.parameters()]))
    return torch.equal(found[0], found[1])


def stall(parts: Engine) -> tuple[float, float]:
    """Seconds of a copy of weights and moments to the host: into fresh memory, and into pinned buffers kept."""
    tensors = [p.detach() for p in parts.model.parameters()]
    tensors += [values[key] for values in parts.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    pinned = [torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in tensors]

    def copied(into: list[torch.Tensor] | None) -> float:
        started_s = time.perf_counter()
        for index, tensor in enumerate(tensors):
            if into is None:
                tensor.to("cpu", copy=True)
            else:
                into[index].copy_(tensor, non_blocking=True)
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started_s

    return copied(None), statistics.median(copied(pinned) for _ in range(3))


def recovers(parts: Engine, samples: list[Sample], config: GPTConfig) -> str:
    """Run out of memory for real, then do the step in smaller pieces."""
    everything = [sample for sample in samples for _ in range(64)]
    try:
        train_step(parts, [collate(everything, config)], 0, 1e-4)
    except torch.OutOfMemoryError:
        pass
    else:
        return "it all fitted, no out of memory was provoked"
    reset_step(parts, 0)
    train_step(parts, batches_of(samples, config, 4096), 0, 1e-4)
    return "out of memory, put away, done again in smaller pieces"


def main() -> None:
    """Print a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64, help="samples of a global batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the card, dense, 16 bit, if it is not known")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes, and needs a C compiler")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not given.small else "cpu"
    if device == "cpu" and not given.small:
        sys.exit("no GPU here: python -m bench.gpu --small runs the code without its meaning")
    config = model_config() if given.small else FULL
    pieces = PIECES if given.small else config.number_text_tokens
    facts = read_facts(device)
    probe = engine(config, pieces=pieces, base_pieces=pieces)
    parameters = count_parameters(probe.model)
    samples = utterances(given.samples, config)
    lengths = [tokens_of(sample, config) for sample in samples]
    plan = make_plan(
        facts, HardwareConfig(), Needs(model=config, trained_parameters=parameters, longest_tokens=max(lengths))
    )
    del probe

    def parts() -> Engine:
        return engine(
            config,
            pieces=pieces,
            base_pieces=pieces,
            dropout=given.dropout,
            device=device,
            precision=plan.precision,
        )

    print(f"{facts.name}, driver {facts.driver or 'none'}, torch {torch.__version__}, {parameters / 1e6:.0f} M trained")
    print(f"plan by arithmetic: {plan.capacity_tokens} tokens per micro-batch, {plan.precision}")
    if device == "cuda":
        text = sum(len(sample.text_ids) for sample in samples) // len(samples)
        codes = sum(len(sample.codes) for sample in samples) // len(samples)
        line = measured_line(parts(), config, (text, codes), max(lengths), CudaMeter(), step=0)
        if line:
            plan = replace(plan, capacity_tokens=line.capacity_tokens(usable_bytes(facts, MEASURED_SHARE)))
        print(f"measured: {line}, {plan.capacity_tokens} tokens per micro-batch")
    rate = speed(parts, samples, config, plan, given.rounds)
    peak = given.peak_tflops * 1e12 or peak_flops(facts, plan.precision)
    if peak:
        flops = training_flops(config, pieces + 1, [(len(s.text_ids), len(s.codes)) for s in samples]) / sum(lengths)
        print(f"{'MFU':<28}{rate * flops / peak:>12.1%}")
    packed = batches_of(samples, config, plan.capacity_tokens)
    other_ways(parts, packed, given.rounds, compiled=given.compile)
    one = parts()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train_step(one, packed, 0, 1e-4)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        print(f"{'peak memory':<28}{human_bytes(peak):>12} of {human_bytes(facts.memory_bytes)}")
    fresh_s, pinned_s = stall(one)
    print(f"{'copy of the state':<28}{fresh_s * 1000:>9.0f} ms fresh{pinned_s * 1000:>9.0f} ms pinned")
    print(f"{'same bits twice':<28}{'yes' if same_bits(parts, packed) else 'NO':>12}")
    if device == "cuda":
        print(f"{'out of memory':<28}{recovers(one, samples, config)}")


if __name__ == "__main__":
    main()
