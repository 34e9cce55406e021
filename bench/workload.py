"""A model and utterances in realistic proportions, small enough for a CPU."""

from dataclasses import replace

import numpy as np
import torch

from indextts_job.hardware.plan import Precision
from indextts_job.model.adapter import Adapter
from indextts_job.model.batch import Sample
from indextts_job.model.config import ConformerConfig, GPTConfig
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.versions import TEXT_TOKENS_2_5, V2_5
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.training.engine import Engine
from indextts_job.training.recipe import OptimizerConfig, RecipeConfig
from indextts_job.training.state import build_optimizer

_CONFORMER = ConformerConfig(output_size=8, linear_units=8, attention_heads=1, num_blocks=1)
TEXT_TOKENS_PER_SECOND = 3.5
PIECES = 2400


def model_config(width: int = 256, layers: int = 4) -> GPTConfig:
    """The published shape at a fifth of its width; tables shrink in proportion."""
    return GPTConfig(
        model_dim=width,
        layers=layers,
        heads=width // 64,
        max_text_tokens=600,
        max_mel_tokens=1815,
        number_text_tokens=PIECES,
        number_mel_codes=1640,
        start_mel_token=1638,
        stop_mel_token=1639,
        start_text_token=0,
        stop_text_token=1,
        condition_module=_CONFORMER,
        emo_condition_module=_CONFORMER,
    )


FULL = replace(
    model_config(1280, 24),
    number_text_tokens=12000,
    number_mel_codes=8194,
    start_mel_token=8192,
    stop_mel_token=8193,
)
"""The trained part of the released model."""
FULL_2_5 = replace(FULL, version=V2_5, number_text_tokens=TEXT_TOKENS_2_5)
"""The same of IndexTTS-2.5, whose text tables are five times as large."""


def utterances(count: int, config: GPTConfig, seed: int = 0) -> list[Sample]:
    """Clips of 2 to 15 s, mostly around 5 s: on average 418 rows, as in 200 hours of read speech."""
    random = np.random.default_rng(seed)
    samples = []
    for index, seconds in enumerate(random.triangular(2, 5, 15, count)):
        samples.append(
            Sample(
                index=index,
                id=str(index),
                text_ids=random.integers(3, PIECES, max(1, round(TEXT_TOKENS_PER_SECOND * seconds))),
                codes=random.integers(0, config.number_codes, round(config.version.codes_per_second * seconds) - 1),
                condition=random.normal(0, 0.5, config.speaker_shape).astype(np.float32),
                emotion=random.normal(0, 0.1, config.model_dim).astype(np.float32),
            )
        )
    return samples


def tokens_of(sample: Sample, config: GPTConfig) -> int:
    """Rows that a sample takes in a packed sequence."""
    return config.sample_tokens(len(sample.text_ids), len(sample.codes))


def engine(  # noqa: PLR0913  # all by name
    config: GPTConfig,
    *,
    pieces: int = PIECES,
    base_pieces: int = PIECES,
    dropout: float = 0.0,
    device: str = "cpu",
    precision: Precision = "float32",
    adapter: Adapter | None = None,
) -> Engine:
    """A freshly initialised model, ready to train."""
    torch.manual_seed(0)
    model = UnifiedVoice(config, Vocabulary(pieces, base_pieces), dropout, adapter)
    for values in model.state_dict().values():
        if values.dim() > 1:
            values.normal_(std=0.02)
    model.to(device)
    return Engine(
        model=model.train(),
        optimizer=build_optimizer(model, OptimizerConfig()),
        scaler=torch.amp.GradScaler(device, enabled=precision == "float16"),
        device=torch.device(device),
        precision=precision,
        recipe=RecipeConfig(dropout=dropout),
        grad_clip=1.0,
    )
