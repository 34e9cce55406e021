"""What the rows of `bench.first_ten_minutes` share: the card, the model, the samples of a step, and how to time one."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from unittest import mock

import torch

from bench.attention_checks import forced
from bench.first_ten_minutes import Options, Value
from bench.packing import batched_attention
from bench.workload import FULL, FULL_2_5, engine, tokens_of, utterances
from indextts_job.data.packing import pack
from indextts_job.hardware.facts import read_facts
from indextts_job.hardware.peak import peak_flops
from indextts_job.hardware.plan import HardwareConfig, HardwareFacts, Needs, Plan, make_plan
from indextts_job.model import transformer
from indextts_job.model.adapter import Adapter
from indextts_job.model.adapter_config import AdapterConfig
from indextts_job.model.attention import AttentionKernel
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.model.flops import training_flops
from indextts_job.model.memory import Sizes
from indextts_job.model.versions import V2_5
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.training.engine import AUTOCAST_DTYPES, Engine, allocator
from indextts_job.training.recipe import RecipeConfig
from indextts_job.training.step import Updated, train_step

DROPOUT = RecipeConfig().dropout
DETERMINISTIC = HardwareConfig().deterministic
LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The machine and the work that all rows share."""

    options: Options
    facts: HardwareFacts
    config: GPTConfig
    sizes: Sizes
    samples: list[Sample]
    """Those of a step."""
    adapter: Adapter | None
    plan: Plan
    """The product's plan for this card with default settings."""
    peak: float
    """Operations per second in 16 bit; 0 = unknown."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the products."""
        return AUTOCAST_DTYPES.get(self.plan.precision, torch.float32)

    def engine(self, dropout: float = DROPOUT) -> Engine:
        """A fresh model on the device, always with the same weights."""
        with torch.device("cuda"):  # drawn on the device: on a CPU half a billion values take seconds
            made = engine(
                self.config,
                pieces=self.config.number_text_tokens,
                base_pieces=self.config.number_text_tokens,
                dropout=dropout,
                device="cuda",
                precision=self.plan.precision,
                adapter=self.adapter,
            )
        made.model.gpt.recompute = self.plan.recompute
        return made

    def batches(self, capacity_tokens: int = 0) -> list[PackedBatch]:
        """The step, cut into micro-batches of at most so many tokens and never of more than planned; 0 = as planned."""
        planned = self.plan.capacity_tokens
        return packed(self.samples, self.config, min(capacity_tokens or planned, planned))

    def figures(self, seconds: float, samples: Sequence[Sample]) -> dict[str, Value]:
        """Speed of a step.

        Args:
            seconds: Its duration.
            samples: Its samples. Padding counts neither as tokens nor as operations.
        """
        tokens = sum(tokens_of(sample, self.config) for sample in samples)
        lengths = [(len(sample.text_ids), len(sample.codes)) for sample in samples]
        rate = training_flops(self.config, self.config.number_text_tokens + 1, lengths) / seconds
        found: dict[str, Value] = {"ms": 1e3 * seconds, "tokens_per_s": tokens / seconds, "tflops": rate / 1e12}
        return found | {"mfu_percent": 100 * rate / self.peak if self.peak else "unknown"}


def read_setting(options: Options) -> Setting:
    """Look at the card, and plan for it."""
    facts = read_facts("cuda")
    config = replace(FULL_2_5 if options.model == V2_5.name else FULL, layers=options.layers)
    pieces = config.number_text_tokens
    samples = utterances(options.samples, config)
    adapter = Adapter(AdapterConfig(rank=options.rank, base_dtype=options.base_dtype)) if options.rank else None
    sizes = Vocabulary(pieces, pieces).sizes(config, adapter)
    needs = Needs(sizes=sizes, longest_tokens=max(tokens_of(sample, config) for sample in samples))
    plan = make_plan(facts, HardwareConfig(), needs)
    return Setting(
        options=options,
        facts=facts,
        config=config,
        sizes=sizes,
        samples=samples,
        adapter=adapter,
        plan=plan,
        peak=options.peak_flops or peak_flops(facts, plan.precision),
    )


def packed(samples: Sequence[Sample], config: GPTConfig, capacity_tokens: int) -> list[PackedBatch]:
    """Samples, packed into micro-batches in pinned memory, as the loader does."""
    lengths = [tokens_of(sample, config) for sample in samples]
    bins = pack(lengths, max(capacity_tokens, *lengths))
    allocate = allocator(torch.device("cuda"))
    return [collate([samples[slot] for slot in slots], config, allocate) for slots in bins]


def trained(own: Engine, batches: Sequence[PackedBatch], step: int = 0) -> Updated:
    """One step that has ended on the device too."""
    updated = train_step(own, batches, step, LEARNING_RATE)
    torch.cuda.synchronize()
    if not isinstance(updated, Updated):
        raise TypeError("a step that nobody discards was discarded")
    return updated


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory that torch has handed out during this work."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@contextlib.contextmanager
def kernels(*, deterministic: bool = DETERMINISTIC, attention: AttentionKernel | None = None) -> Iterator[None]:
    """Choose kernels for the work inside.

    Args:
        deterministic: Only those that give the same bits every time.
        attention: In place of the one that the product takes on this card; None = the product's.
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as the product does
    try:
        with forced(attention) if attention else contextlib.nullcontext():
            yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


@contextlib.contextmanager
def padded_batches() -> Iterator[None]:
    """Inside, attention takes equally long samples as one batch, as the public trainer does; any kernels."""
    with kernels(deterministic=False), mock.patch.object(transformer, "packed_causal_attention", batched_attention):
        yield


def put_back() -> None:
    """Free the memory of a row."""
    gc.collect()  # a traceback holds its frames, and they the tensors, in a circle
    torch.cuda.empty_cache()
