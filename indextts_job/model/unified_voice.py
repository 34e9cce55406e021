"""The trained part of UnifiedVoice: embeddings, transformer, heads, and loss sums over a packed micro-batch.

Modules that never train (the conditioning encoders) are not built: the dataset stores their outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from indextts_job.model.adapter import Adapter, InOutLinear, LanguageTable, freeze
from indextts_job.model.attention import SampleEdges
from indextts_job.model.config import GPTConfig
from indextts_job.model.head import head_loss, head_tables, row_losses
from indextts_job.model.memory import Sizes
from indextts_job.model.precision import computing_dtype
from indextts_job.model.rows import take_rows
from indextts_job.model.transformer import LAYER_NORM_EPSILON, Transformer
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, TextEmbedding, TextHead, Vocabulary


@dataclass(frozen=True, slots=True)
class LossSums:
    """Loss sums over the counted targets of one micro-batch.

    Sums and not means: only the step knows the counts of the global batch to divide by (I3).
    """

    text: Tensor
    """Scalar, nats."""
    mel: Tensor
    """Scalar, nats."""
    mel_correct: Tensor
    """Scalar, number of code targets that the arg-max hits."""
    mel_rows: Tensor
    """[code targets] nats, without a gradient."""


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A packed micro-batch on the model's device. Fields and shapes are those of `PackedBatch`."""

    condition: Tensor
    emotion: Tensor
    text_inputs: Tensor
    text_positions: Tensor
    text_languages: Tensor
    code_inputs: Tensor
    code_positions: Tensor
    source_rows: Tensor
    packed_rows: Tensor
    target_rows: Tensor
    target_of_row: Tensor
    text_targets: Tensor
    code_targets: Tensor
    edges: SampleEdges


def _language_table(rows: int, width: int, adapter: Adapter | None) -> nn.Module:
    return LanguageTable(rows, width, adapter.language_rows) if adapter else nn.Embedding(rows, width)


def _narrow_base(model: nn.Module) -> None:
    """Hold the matrices of the blocks and the text tables, which are constant, in bfloat16; `memory.py` counts them."""
    for module in model.modules():
        if isinstance(module, InOutLinear | TextEmbedding | TextHead):
            module.register_buffer("weight", module.weight.to(torch.bfloat16))


class PositionTable(nn.Module):
    """Learned position embeddings, under the published name `emb`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(rows, width)

    def forward(self, positions: Tensor) -> Tensor:
        """[tokens] -> [tokens, dim]."""
        output: Tensor = self.emb(positions)
        return output


class UnifiedVoice(nn.Module):
    """The trained modules of IndexTTS's GPT. Parameter names equal the base checkpoint's keys."""

    def __init__(
        self, config: GPTConfig, vocabulary: Vocabulary, dropout: float, adapter: Adapter | None = None
    ) -> None:
        super().__init__()
        width = config.model_dim
        self.vocabulary = vocabulary
        self.text_embedding = TextEmbedding(vocabulary, width)
        self.mel_embedding = nn.Embedding(config.number_mel_codes, width)
        self.text_pos_embedding = PositionTable(config.max_text_tokens + 2, width)
        self.mel_pos_embedding = PositionTable(config.max_mel_tokens + 3, width)
        self.config, self.version = config, config.version
        self.adapter = adapter
        if config.version.language_rows:
            self.lang_embedding = _language_table(config.version.language_rows, width, adapter)
        if config.version.speaker_width:
            self.spk_emb_proj = nn.Linear(config.version.speaker_width, width)
        else:
            self.speed_emb = nn.Embedding(2, width)
        self.gpt = Transformer(width, config.layers, config.heads, dropout, adapter.config if adapter else None)
        self.final_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.text_head = TextHead(vocabulary, width)
        self.mel_head = nn.Linear(width, config.number_mel_codes)
        if adapter:
            freeze(self, kept=(NEW_ROWS_SUFFIX,))
            if adapter.config.base_dtype == "bfloat16":
                _narrow_base(self)

    @property
    def sizes(self) -> Sizes:
        """The sizes that decide about memory."""
        return self.vocabulary.sizes(self.config, self.adapter)

    def language_row(self, row: int) -> Tensor:
        """[dim] a row of the language table, as a forward pass reads it."""
        ids = torch.tensor([row], device=self.mel_head.weight.device)
        return self._language_vectors(ids)[0]

    def _language_vectors(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.lang_embedding(rows)
        return vectors

    def forward(self, batch: DeviceBatch) -> LossSums:
        """Loss sums of one packed micro-batch."""
        texts, codes = self._predicting(batch)
        text_sum, *_ = head_loss(texts, self.text_head.tables(), self.text_head.columns(batch.text_targets))
        mel_sum, mel_correct, mel_rows = head_loss(
            codes, head_tables(self.mel_head.weight, self.mel_head.bias), batch.code_targets
        )
        return LossSums(text_sum, mel_sum, mel_correct, mel_rows)

    def target_losses(self, batch: DeviceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of every text target and of every code target, and how many codes the arg-max hits; for validation."""
        texts, codes = self._predicting(batch)
        text, _ = row_losses(texts, self.text_head.tables(), self.text_head.columns(batch.text_targets))
        mel, correct = row_losses(codes, head_tables(self.mel_head.weight, self.mel_head.bias), batch.code_targets)
        return text, mel, correct

    def _predicting(self, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
        """Hidden states of the rows whose next token is counted: those of the texts, and those of the codes."""
        hidden = self.hidden_states(batch)
        # Cast before the rows are taken: in 16 bit half as much is copied.
        predicting = take_rows(hidden.to(computing_dtype(hidden)), batch.target_rows, batch.target_of_row)
        texts, codes = torch.split(predicting, [len(batch.text_targets), len(batch.code_targets)])
        return texts, codes

    def hidden_states(self, batch: DeviceBatch) -> Tensor:
        """Hidden states after both final norms, [tokens, dim]."""
        output: Tensor = self.final_norm(self.gpt(self.packed_inputs(batch), batch.edges))
        return output

    def packed_inputs(self, batch: DeviceBatch) -> Tensor:
        """The rows that the blocks read, [tokens, dim]."""
        rows = torch.cat(
            [
                self._conditioning(batch.condition, batch.emotion),
                self._texts(batch),
                self.mel_embedding(batch.code_inputs) + self.mel_pos_embedding(batch.code_positions),
            ]
        )
        # A permutation, which puts the three segments of each sample side by side.
        return take_rows(rows, batch.source_rows, batch.packed_rows)

    def _texts(self, batch: DeviceBatch) -> Tensor:
        """Inputs of the text rows, [sum(T + 2), dim]."""
        rows: Tensor = self.text_embedding(batch.text_inputs) + self.text_pos_embedding(batch.text_positions)
        # On all of them, start and stop too, as inference does.
        return rows + self._language_vectors(batch.text_languages) if self.version.language_rows else rows

    def _conditioning(self, condition: Tensor, emotion: Tensor) -> Tensor:
        """A sample's conditioning array and emotion vector -> [samples * conditioning rows, dim], without positions.

        Args:
            condition: [samples, 32, dim] or [samples, 192].
            emotion: [samples, dim].
        """
        if self.version.speaker_width:
            rows = self._of_vectors(condition, emotion)
        else:
            rows = self._of_latents(condition, emotion)
        return rows.reshape(-1, rows.shape[-1])

    def _of_vectors(self, speaker: Tensor, emotion: Tensor) -> Tensor:
        weight = self.spk_emb_proj.weight
        # In the precision of the weights: it is one row of a sample, and what 16 bit would save is not to be measured.
        with torch.autocast(weight.device.type, enabled=False):
            projected = self.spk_emb_proj(speaker.to(weight.dtype)) + emotion.to(weight.dtype)
        zeros = self.version.conditioning_rows - 1
        return torch.cat([projected[:, None], projected.new_zeros(len(projected), zeros, projected.shape[1])], dim=1)

    def _of_latents(self, condition: Tensor, emotion: Tensor) -> Tensor:
        samples, _, width = condition.shape
        # Speed row 1 comes before row 0 in the published forward pass.
        speed = self.speed_emb.weight.flip(0).expand(samples, 2, width)
        latents = condition + emotion[:, None]
        return torch.cat([latents.to(speed.dtype), speed], dim=1)
