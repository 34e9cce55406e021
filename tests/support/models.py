"""Small models and batches without files."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from indextts_job.data.packing import pack
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import ConformerConfig, GPTConfig
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.versions import V2_5
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.engine import Engine
from indextts_job.training.gradients import GradientSum
from indextts_job.training.recipe import OptimizerConfig, RecipeConfig
from indextts_job.training.state import build_optimizer, owners_of

_CONFORMER = ConformerConfig(output_size=8, linear_units=8, attention_heads=1, num_blocks=1)
SMALL = GPTConfig(
    model_dim=64,
    layers=2,
    heads=4,
    max_text_tokens=20,
    max_mel_tokens=40,
    number_text_tokens=50,
    number_mel_codes=34,
    start_mel_token=32,
    stop_mel_token=33,
    start_text_token=0,
    stop_text_token=1,
    condition_module=_CONFORMER,
    emo_condition_module=_CONFORMER,
)
"""The model of the golden values."""
SMALL_2_5 = replace(SMALL, version=V2_5)
"""The same sizes in the other version."""
LANGUAGES = (9, 78)
"""Language rows of the golden samples of IndexTTS-2.5."""
SMALL_BUCKET_BYTES = 50_000
"""So that this model has several buckets."""


def golden_sample(text: int, codes: int, shift: int, config: GPTConfig = SMALL) -> Sample:
    """The sample (T, M, s) that the golden values are defined on."""
    width, shape = config.model_dim, config.speaker_shape
    size = int(np.prod(shape))
    return Sample(
        index=shift,
        id=f"sample-{shift}",
        text_ids=np.array([3 + (7 * j + shift) % 47 for j in range(text)]),
        codes=np.array([(5 * j + 2 + shift) % 32 for j in range(codes)]),
        condition=(0.1 * np.cos(0.3 * np.arange(size) + shift)).reshape(shape),
        emotion=0.1 * np.sin(0.2 * np.arange(width) + shift),
        language_row=LANGUAGES[shift],
    )


def golden_model(config: GPTConfig = SMALL) -> UnifiedVoice:
    """float64; the k-th tensor by name holds 0.05 sin(1.3 i + 0.7 k), plus 1 for weights of norms."""
    model = UnifiedVoice(config, Vocabulary(50, 50), 0.0).double()
    state = model.state_dict()
    for k, name in enumerate(sorted(state)):
        index = torch.arange(state[name].numel(), dtype=torch.float64)
        values = 0.05 * torch.sin(1.3 * index + 0.7 * k)
        if name.endswith("weight") and name.split(".")[-2] in ("ln_1", "ln_2", "ln_f", "final_norm"):
            values += 1
        state[name].copy_(values.view(state[name].shape))
    return model


def random_samples(count: int, seed: int = 0, config: GPTConfig = SMALL) -> list[Sample]:
    random = np.random.default_rng(seed)
    return [
        Sample(
            index=i,
            id=f"sample-{i}",
            text_ids=random.integers(3, 50, random.integers(1, 20, endpoint=True)),
            codes=random.integers(0, 32, random.integers(1, 40, endpoint=True)),
            condition=random.normal(0, 0.5, config.speaker_shape).astype(np.float32),
            emotion=random.normal(0, 0.1, SMALL.model_dim).astype(np.float32),
            language_row=7 * i % 99,
        )
        for i in range(count)
    ]


def micro_batches(samples: Sequence[Sample], capacity: int, config: GPTConfig = SMALL) -> list[PackedBatch]:
    lengths = [config.sample_tokens(len(s.text_ids), len(s.codes)) for s in samples]
    return [collate([samples[slot] for slot in slots], config) for slots in pack(lengths, capacity)]


def engine(
    model: UnifiedVoice,
    *,
    precision: str = "float32",
    dropout: float = 0.0,
    grad_clip: float = 1.0,
    group: ProcessGroup | None = None,
    sharded: bool = False,
) -> Engine:
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    group = group or SingleProcess()
    owners = owners_of(model, group.world_size)
    in_use = owners if sharded else ()
    mine = {name for (name, _), owner in zip(model.named_parameters(), owners, strict=True) if owner == group.rank}
    return Engine(
        model=model.train(),
        optimizer=build_optimizer(model, OptimizerConfig(), mine if sharded else None),
        scaler=scaler,
        device=torch.device("cpu"),
        precision=precision,  # type: ignore[arg-type]
        recipe=RecipeConfig(dropout=dropout),
        grad_clip=grad_clip,
        group=group,
        owners=in_use,
        gradients=GradientSum(model.parameters(), group, in_use, SMALL_BUCKET_BYTES),
    )


def small_model(
    seed: int = 0, pieces: int = 50, base_pieces: int = 50, dropout: float = 0.0, config: GPTConfig = SMALL
) -> UnifiedVoice:
    """float32, freshly initialised as the published model is."""
    model = UnifiedVoice(config, Vocabulary(pieces, base_pieces), dropout)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("weight") and name.split(".")[-2] in ("ln_1", "ln_2", "ln_f", "final_norm"):
                tensor.fill_(1.0)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return model
