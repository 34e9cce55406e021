"""The rows of `bench.first_ten_minutes`: what is computed on the GPU, each row for itself, the most decisive first."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median

import torch
from torch import Tensor

from bench.attention_checks import Attention, compared, efficient_packed, inputs_of, mask_error, product, relative
from bench.attention_checks import padded as padded_attention
from bench.first_ten_minutes import Value
from bench.gpu_setting import DROPOUT, Setting, kernels, packed, padded_batches, peak_bytes, trained
from bench.packing import padded
from bench.timing import alternate
from bench.workload import engine, model_config, tokens_of, utterances
from indextts_job.hardware.plan import measured_share, planned_bytes, usable_bytes
from indextts_job.loop.staging import HostCopies
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.training.engine import Engine
from indextts_job.training.evaluate import evaluate
from indextts_job.training.probe import CudaMeter, measured_line
from indextts_job.training.state import TrainState
from indextts_job.training.step import reset_step, train_step

SMALL_MICRO_BATCH_TOKENS = 4096
BITS_MICRO_BATCH_TOKENS = 8192
"""Several micro-batches in a step, so that the bits of their sum are compared too."""
RIVAL_SAMPLES = 64
RIVAL_BATCH = ((70, 64), (35, 16), (20, 8), (15, 6), (0, 2))
"""Samples per batch by GiB of memory: the public trainer's table."""


def device(setting: Setting) -> dict[str, Value]:
    """The card, its driver, torch, and what the product plans for them."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name.replace(" ", "_"),
        "capability": setting.facts.capability,
        "gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "driver": setting.facts.driver or "unknown",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "precision": setting.plan.precision,
        "planned_tokens": setting.plan.capacity_tokens,
        "recompute": setting.plan.recompute,
    }


def ceilings(setting: Setting) -> dict[str, Value]:
    """What this card reaches: a large product in 16 bit, and a copy inside its memory, bytes read and written."""
    size = 8192
    # Not zeros: they need less power, so the clock stays higher than it does in training.
    one, other = (torch.randn(size, size, device="cuda", dtype=setting.dtype) for _ in range(2))
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    found = alternate(
        {"product": _ended(lambda: one @ other), "copy": _ended(lambda: target.copy_(source))},
        10,
    )
    return {
        "product_tflops": 2 * size**3 / found["product"] / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / found["copy"] / 1e9,
    }


def attention_row(attention: Attention) -> Callable[[Setting], dict[str, Value]]:
    """A kernel's errors, and its time forward and backward on the samples of a step."""

    def work(setting: Setting) -> dict[str, Value]:
        gradient_error = compared(attention, setting.dtype, setting.config)
        mask, mean = mask_error(attention, setting.dtype, setting.config)
        edges, qkv = inputs_of(setting.samples, setting.dtype, setting.config)
        upstream = torch.randn_like(qkv[:, 0])

        def both() -> None:
            torch.autograd.grad(attention(qkv, edges, DROPOUT), qkv, upstream)

        ms = 1e3 * alternate({"": _ended(both)}, setting.options.rounds)[""]
        return {"error": gradient_error, "mask_error": mask, "mean_of_ones": mean, "ms": ms}

    return work


def model_gradients(setting: Setting) -> dict[str, Value]:
    """Loss, norm and direction of the gradient of a small model, against the same in float64 on the CPU."""
    config = model_config(256, 2)
    batches = [collate(utterances(4, config), config)]
    here = engine(config, device="cuda", precision=setting.plan.precision)
    right = _in_float64(here, config)
    found, expected = trained(here, batches), trained(right, batches)
    # Both are clipped to the same norm, so this compares directions.
    gradients = [_gradient(own) for own in (here, right)]
    return {
        "loss_error": abs(found.losses.total - expected.losses.total) / expected.losses.total,
        "norm_error": abs(found.grad_norm - expected.grad_norm) / expected.grad_norm,
        "direction_error": relative(*gradients),
    }


def _in_float64(own: Engine, config: GPTConfig) -> Engine:
    """The same weights on the CPU."""
    torch.set_default_dtype(torch.float64)
    try:
        wide = engine(config)
    finally:
        torch.set_default_dtype(torch.float32)
    wide.model.load_state_dict(own.model.state_dict())
    return wide


def _gradient(own: Engine) -> Tensor:
    return torch.cat([p.grad.flatten().double().cpu() for p in own.model.parameters() if p.grad is not None])


def step(setting: Setting) -> dict[str, Value]:
    """A step with default settings."""
    own, batches = setting.engine(), setting.batches()
    with kernels():
        seconds = alternate({"": _step(own, batches)}, setting.options.rounds)[""]
        peak = peak_bytes(_step(own, batches))
        loss = trained(own, batches).losses.total
    speed = setting.figures(seconds, setting.samples)
    return speed | {"peak_gb": peak / 1e9, "micro_batches": len(batches), "loss": loss}


def step_with(
    change: Callable[[], AbstractContextManager[None]], capacity_tokens: int = 0
) -> Callable[[Setting], dict[str, Value]]:
    """A step that is done otherwise, by turns with one with default settings.

    Args:
        change: Active during the step.
        capacity_tokens: Most tokens of its micro-batches; 0 = as planned.
    """

    def work(setting: Setting) -> dict[str, Value]:
        own, usual, batches = setting.engine(), setting.batches(), setting.batches(capacity_tokens)
        default, changed = _inside(kernels, _step(own, usual)), _inside(change, _step(own, batches))
        seconds = alternate({"default": default, "changed": changed}, setting.options.rounds)
        found = setting.figures(seconds["changed"], setting.samples)
        found |= {"peak_gb": peak_bytes(changed) / 1e9, "micro_batches": len(batches)}
        return found | {"speed_of_default": seconds["default"] / seconds["changed"]}

    return work


def step_compiled(setting: Setting) -> dict[str, Value]:
    """A step with compiled blocks, by turns with one with default settings."""
    own, faster, batches = setting.engine(), setting.engine(), setting.batches()
    faster.model.gpt.compile_blocks()
    with kernels():
        started_s = time.perf_counter()
        trained(faster, batches)
        compile_s = time.perf_counter() - started_s
        rivals = {"default": _step(own, batches), "compiled": _step(faster, batches)}
        seconds = alternate(rivals, setting.options.rounds)
        peak = peak_bytes(rivals["compiled"])
    found = setting.figures(seconds["compiled"], setting.samples)
    found |= {"peak_gb": peak / 1e9, "first_step_s": compile_s}
    return found | {"speed_of_default": seconds["default"] / seconds["compiled"]}


def padded_rival(setting: Setting) -> dict[str, Value]:
    """Packed training by turns with the public trainer's formulation of the same model, with its batch size."""
    gib = setting.facts.memory_bytes / 2**30
    size = next(batch for least, batch in RIVAL_BATCH if gib >= least)
    samples = utterances(RIVAL_SAMPLES, setting.config)
    groups = [padded(samples[first : first + size], setting.config) for first in range(0, len(samples), size)]
    batches = packed(samples, setting.config, setting.plan.capacity_tokens)
    own = setting.engine()
    theirs = _inside(padded_batches, _step(own, groups))
    ours = _inside(kernels, _step(own, batches))
    seconds = alternate({"padded": theirs, "packed": ours}, setting.options.rounds)
    found = setting.figures(seconds["packed"], samples)
    return found | {
        "padded_ms": 1e3 * seconds["padded"],
        "padded_batch": size,
        "padded_peak_gb": peak_bytes(theirs) / 1e9,
        "ratio": seconds["padded"] / seconds["packed"],
    }


def evaluation(setting: Setting) -> dict[str, Value]:
    """A validation, which every save does too; log(8194) = 9.01 is the code loss of a model that knows nothing."""
    own, batches = setting.engine(), setting.batches(SMALL_MICRO_BATCH_TOKENS)
    with kernels():
        seconds = alternate({"": _ended(lambda: evaluate(own, batches, _never))}, setting.options.rounds)[""]
        losses = evaluate(own, batches, _never)
    if losses is None:
        raise RuntimeError("a validation that nobody interrupts was interrupted")
    return {
        "ms": 1e3 * seconds,
        "tokens_per_s": sum(batch.num_tokens for batch in batches) / seconds,
        "text_loss": losses.text_loss,
        "mel_loss": losses.mel_loss,
    }


def bits(*, deterministic: bool) -> Callable[[Setting], dict[str, Value]]:
    """Three steps done twice from the same weights."""

    def work(setting: Setting) -> dict[str, Value]:
        weights, totals = [], []
        for _ in range(2):
            own, batches = setting.engine(), setting.batches(BITS_MICRO_BATCH_TOKENS)
            with kernels(deterministic=deterministic):
                totals.append([trained(own, batches, index).losses.total for index in range(3)])
            weights.append(torch.cat([p.detach().flatten().cpu() for p in own.model.parameters()]))
            del own  # two models and their moments need not fit
        different = int((weights[0] != weights[1]).sum())
        return {
            "same": torch.equal(*weights) and totals[0] == totals[1],
            "different_weights": different,
            "largest_difference": float((weights[0] - weights[1]).abs().max()),
            "last_loss": totals[0][-1],
        }

    return work


def stall(setting: Setting) -> dict[str, Value]:
    """How long a save holds training up: weights and moments copied to the host, first and later."""
    own = setting.engine()
    state = TrainState(model=own.model, optimizer=own.optimizer, scaler=own.scaler, step=1)  # type: ignore[arg-type]
    groups, copies = state.tensor_groups(), HostCopies()
    seconds, complete = [], []
    started_s = time.perf_counter()
    copies.reserve(groups)
    reserve_s = time.perf_counter() - started_s
    for _ in range(4):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        snapshot = copies.of(groups, own.optimizer)
        seconds.append(time.perf_counter() - started_s)
        snapshot.complete()
        complete.append(time.perf_counter() - started_s)
    copied = sum(tensor.nbytes for group in groups for tensor in group.values())
    return {
        "reserve_ms": 1e3 * reserve_s,
        "stall_ms": 1e3 * median(seconds),
        "complete_ms": 1e3 * median(complete),
        "gb": copied / 1e9,
        "gb_per_s": copied / median(complete) / 1e9,
    }


def out_of_memory(setting: Setting) -> dict[str, Value]:
    """A micro-batch that cannot fit, and the same step in smaller ones."""
    own = setting.engine()
    tokens = sum(tokens_of(sample, setting.config) for sample in setting.samples)
    # 20 bytes per token, layer and unit of width are fewer than any way of training needs.
    least_bytes = 20 * tokens * setting.config.layers * setting.config.model_dim
    everything = setting.samples * (1 + setting.facts.memory_bytes // least_bytes)
    before = _checksum(own)
    with kernels():
        try:
            train_step(own, [collate(everything, setting.config)], 0, 1e-4)
        except torch.OutOfMemoryError:
            reset_step(own, 0)
        else:
            raise RuntimeError(f"a micro-batch of {tokens * len(everything)} tokens fitted")
        untouched = before == _checksum(own)
        allocated = torch.cuda.memory_allocated()
        updated = trained(own, setting.batches(int(0.8 * setting.plan.capacity_tokens)))
    return {
        "weights_untouched": untouched,
        "left_allocated_gb": allocated / 1e9,
        "loss_of_the_next_try": updated.losses.total,
    }


def _checksum(own: Engine) -> list[int]:
    return [int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in own.model.parameters()]


def plan(setting: Setting) -> dict[str, Value]:
    """Expected memory of the largest micro-batch against what it takes, and what the measured line allows."""
    config, capacity = setting.config, setting.plan.capacity_tokens
    samples, filled = _filling(capacity, config)
    own, full = setting.engine(), collate(samples, config)
    with kernels():
        try:
            # Gradients exist from the second micro-batch on, so it has the peak of all later ones.
            peak, fits = peak_bytes(_step(own, [full, full])), True
        except torch.OutOfMemoryError:
            peak, fits = torch.cuda.max_memory_allocated(), False
        reserved = torch.cuda.max_memory_reserved()
        reset_step(own, 0)
        text, codes = (
            sum(len(ids) for ids in column) // len(samples)
            for column in zip(*((sample.text_ids, sample.codes) for sample in samples), strict=True)
        )
        longest = max(tokens_of(sample, config) for sample in setting.samples)
        line = measured_line(own, config, (text, codes), longest, CudaMeter(), 0)
    usable = usable_bytes(setting.facts, measured_share(setting.facts, setting.plan))
    expected = planned_bytes(setting.facts, setting.plan, setting.sizes)
    predicted = expected.fixed + expected.per_token * filled
    return {
        "fits": fits,
        "tokens": filled,
        "predicted_gb": predicted / 1e9,
        "peak_gb": peak / 1e9,
        "reserved_gb": reserved / 1e9,
        "predicted_over_peak": predicted / peak,
        "measured_tokens": line.capacity_tokens(usable) if line else "none",
    }


def _filling(capacity: int, config: GPTConfig) -> tuple[list[Sample], int]:
    """As many samples as a micro-batch of this capacity holds, and their tokens."""
    samples: list[Sample] = []
    filled = 0
    for sample in utterances(1 + capacity // 50, config):  # the shortest has more than 50 tokens
        filled += tokens_of(sample, config)
        if filled > capacity:
            return samples, filled - tokens_of(sample, config)
        samples.append(sample)
    raise ValueError(f"no {capacity} tokens in {len(samples)} samples")


def _step(own: Engine, batches: list[PackedBatch]) -> Callable[[], None]:
    def work() -> None:
        trained(own, batches)

    return work


def _ended(work: Callable[[], object]) -> Callable[[], None]:
    """Work that has ended on the device too."""

    def both() -> None:
        work()
        torch.cuda.synchronize()

    return both


def _inside(change: Callable[[], AbstractContextManager[None]], work: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        with change():
            work()

    return both


def _never(_done: int) -> bool:
    return False


WORK: dict[str, Callable[[Setting], dict[str, Value]]] = {
    "device": device,
    "attention-product": attention_row(product),
    "attention-padded": attention_row(padded_attention),
    "attention-efficient": attention_row(efficient_packed),
    "model-gradients": model_gradients,
    "step": step,
    "evaluate": evaluation,
    "bits-deterministic": bits(deterministic=True),
    "out-of-memory": out_of_memory,
    "plan": plan,
    "padded-rival": padded_rival,
    "stall": stall,
    "step-not-deterministic": step_with(lambda: kernels(deterministic=False)),
    "step-padded-attention": step_with(lambda: kernels(attention="padded")),
    "step-small": step_with(kernels, SMALL_MICRO_BATCH_TOKENS),
    "ceilings": ceilings,
    "bits-any": bits(deterministic=False),
    "step-compiled": step_compiled,
}
"""What computes each row of `bench.first_ten_minutes`."""
