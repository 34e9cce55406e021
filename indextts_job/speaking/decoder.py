"""Lets the model speak: codes one after the other, each from those before, with a key/value cache.

Published inference gives generated code n (from 1) the position n + 1, so that position 1 is never used, while training
gives it n. A check of what users will hear has to do the same. Utterances of a group are computed together and do not
see each other, so the size of a group changes a code only where rounding decides between two. Source: `gpt/model_v2.py`
of the releases; the codes of `tests/unit/test_decoder.py` are those of its own generation.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.precision import computing_dtype
from indextts_job.model.transformer import Attention, Block
from indextts_job.model.unified_voice import DeviceBatch, UnifiedVoice
from indextts_job.speaking.choice import GREEDY, PLACEHOLDER, Choice, drawn, highest, penalised, uniforms_of

Positions = Literal["inference", "training"]
"""Where generated code n stands: at n + 1 as in published inference, or at n as in training."""
Place = Callable[[PackedBatch], DeviceBatch]
"""Copies a packed batch to the model's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """What is to be spoken."""

    sample: Sample
    """Text, language and voice. Its codes are the reference, which the model does not see."""
    limit: int
    """Most codes, the stop code included."""
    key: int = 0
    """Key of its random numbers."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the model has spoken."""

    codes: tuple[int, ...]
    """Without the stop code."""
    stopped: bool
    """Whether the stop code came within the limit."""
    entropy: float
    """Mean entropy of the scores over the steps, in nats, before penalty and temperature. Not a number where a score
    was none, or infinite: the codes then say nothing."""


Speaking = Generator[None, None, list[Spoken]]
"""Decodes step by step; a caller may stop between two of them."""


def speak(
    model: UnifiedVoice,
    utterances: Sequence[Utterance],
    place: Place,
    choice: Choice = GREEDY,
    positions: Positions = "inference",
) -> Speaking:
    """Speak a group of utterances. Yields behind every code.

    The caller has switched off dropout and gradients, and chosen the precision.

    Args:
        model: The model.
        utterances: At least one.
        place: Copies a batch to the device.
        choice: How codes are chosen.
        positions: Whose positions generated codes get.

    Returns:
        What was spoken, in the order of the utterances.
    """
    silent = [_without_codes(one.sample) for one in utterances]
    batch = place(collate(silent, model.config))
    rows = torch.split(model.packed_inputs(batch), list(batch.edges.lengths))
    longest = max(one.limit for one in utterances)
    cache = _Cache(model, rows, longest)
    voices = _Voices(model, utterances, choice)
    hidden = cache.prefix()
    for number in range(longest):
        chosen = voices.choose(hidden, number)
        yield
        if voices.silent:
            break
        position = number + (2 if positions == "inference" else 1)
        hidden = cache.step(model.mel_embedding(chosen) + _position_row(model, position), number)
    return voices.spoken()


def _without_codes(sample: Sample) -> Sample:
    return Sample(
        index=sample.index,
        id=sample.id,
        text_ids=sample.text_ids,
        codes=sample.codes[:0],
        condition=sample.condition,
        emotion=sample.emotion,
        language_row=sample.language_row,
    )


def _position_row(model: UnifiedVoice, position: int) -> Tensor:
    row: Tensor = model.mel_pos_embedding(torch.tensor([position], device=model.mel_head.weight.device))
    return row


class _Cache:
    """Keys and values of all rows so far, in slots that are the same for all utterances.

    Shorter prefixes are padded in front, so that each code is written by one copy: writing to a place of its own for
    each utterance would make torch sort on a GPU, in every block, to give the same bits every time.
    """

    def __init__(self, model: UnifiedVoice, rows: Sequence[Tensor], steps: int) -> None:
        """Allocate the cache.

        Args:
            model: The model.
            rows: For each utterance, [rows, dim] of its prefix.
            steps: Most codes that follow.
        """
        self._model = model
        self._blocks = [block for block in model.gpt.h if isinstance(block, Block)]
        self._inputs = pad_sequence(list(rows), batch_first=True, padding_side="left")
        count, self._longest, width = self._inputs.shape
        # First slot of each utterance.
        self._first = torch.tensor([self._longest - len(one) for one in rows], device=self._inputs.device)
        heads = self._blocks[0].attn.heads
        # Shape: [layers, 2, utterances, slots, heads, head_dim].
        self._values = self._inputs.new_zeros(
            len(self._blocks),
            2,
            count,
            self._longest + steps,
            heads,
            width // heads,
            dtype=computing_dtype(self._inputs),
        )

    def prefix(self) -> Tensor:
        """[utterances, dim] hidden states of the last row of each prefix."""
        return self._through_blocks(self._inputs, 0)[:, -1]

    def step(self, rows: Tensor, number: int) -> Tensor:
        """[utterances, dim] hidden states of one more row of each utterance.

        Args:
            rows: [utterances, dim].
            number: Codes before these.
        """
        return self._through_blocks(rows[:, None], self._longest + number)[:, 0]

    def _through_blocks(self, x: Tensor, start: int) -> Tensor:
        """[utterances, rows, dim] -> the same behind both final norms.

        Args:
            x: Inputs.
            start: Slot of the first of them.
        """
        shape = x.shape
        seen = self._seen(start, shape[1])
        rows = x.reshape(-1, shape[-1])
        for layer, block in enumerate(self._blocks):
            rows = rows + self._attention(block.attn, block.ln_1(rows), self._values[layer], start, seen)
            rows = rows + block.mlp(block.ln_2(rows))
        output: Tensor = self._model.final_norm(self._model.gpt.ln_f(rows)).view(shape)
        return output

    def _seen(self, start: int, count: int) -> Tensor:
        """[utterances, 1, rows, slots] whether a row sees a slot: its own and those before, but no padding."""
        slots = torch.arange(start + count, device=self._inputs.device)
        rows = slots[start:, None]
        # Padding sees itself: what sees nothing would become NaN, and a weight of 0 times NaN is NaN too.
        return ((slots <= rows) & (slots >= self._first[:, None, None, None])) | (slots == rows)

    def _attention(self, attention: Attention, x: Tensor, cache: Tensor, start: int, seen: Tensor) -> Tensor:
        rows, slots = seen.shape[-2:]
        # Shape: [utterances, rows, 3, heads, head_dim].
        qkv = attention.c_attn(x).view(len(self._first), rows, 3, *cache.shape[3:]).to(cache.dtype)
        cache[:, :, start:slots] = qkv[:, :, 1:].permute(2, 0, 1, 3, 4)
        # Twice [utterances, heads, slots, head_dim].
        key, value = cache[:, :, :slots].transpose(2, 3).unbind(0)
        mixed = F.scaled_dot_product_attention(qkv[:, :, 0].transpose(1, 2), key, value, attn_mask=seen)
        output: Tensor = attention.c_proj(mixed.transpose(1, 2).reshape(len(x), -1))
        return output


class _Voices:
    """The codes of a group so far."""

    def __init__(self, model: UnifiedVoice, utterances: Sequence[Utterance], choice: Choice) -> None:
        config = model.config
        self._head, self._stop, self._choice = model.mel_head, config.stop_mel_token, choice
        self._limits = [one.limit for one in utterances]
        self._keys = [one.key for one in utterances]
        device = model.mel_head.weight.device
        self._history = torch.zeros(len(utterances), config.number_mel_codes, dtype=torch.bool, device=device)
        self._history[:, [PLACEHOLDER, config.start_mel_token]] = True
        self._ids = torch.arange(config.number_mel_codes, device=device)
        self._codes: list[list[int]] = [[] for _ in utterances]
        self._steps = [0] * len(utterances)
        self._entropies = torch.zeros(len(utterances), dtype=torch.float64, device=device)
        self._stopped = [False] * len(utterances)

    @property
    def silent(self) -> bool:
        """Whether nobody speaks any more."""
        return not any(map(self._speaks, range(len(self._limits))))

    def _speaks(self, index: int) -> bool:
        return not self._stopped[index] and self._steps[index] < self._limits[index]

    def choose(self, hidden: Tensor, number: int) -> Tensor:
        """[utterances] the next codes; of utterances that have ended, anything.

        Args:
            hidden: [utterances, dim].
            number: Codes before these.
        """
        scores = self._scores(hidden)
        chosen = self._chosen(penalised(scores, self._history, self._choice.penalty), number)
        speaking = [self._speaks(index) for index in range(len(self._limits))]
        # Not multiplied by 0: nobody judges the scores of those that have ended, and NaN times 0 is NaN.
        self._entropies += torch.where(torch.tensor(speaking, device=scores.device), _entropies(scores), 0.0)
        # Not `scatter_`, for which torch sorts on a GPU.
        self._history |= self._ids == chosen[:, None]
        for index, code in enumerate(chosen.tolist()):
            if speaking[index]:
                self._take(index, code)
        return chosen

    def _take(self, index: int, code: int) -> None:
        self._steps[index] += 1
        if code == self._stop:
            self._stopped[index] = True
        else:
            self._codes[index].append(code)

    def _scores(self, hidden: Tensor) -> Tensor:
        """[utterances, codes] in the precision of the weights: in 16 bit many codes would have equal scores."""
        weight = self._head.weight
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(weight.dtype), weight, self._head.bias)

    def _chosen(self, scores: Tensor, number: int) -> Tensor:
        sampling = self._choice.sampling
        if sampling is None:
            return highest(scores)
        return drawn(scores, sampling, uniforms_of(sampling.seed, self._keys, number))

    def spoken(self) -> list[Spoken]:
        """What was spoken."""
        found = zip(self._codes, self._stopped, self._entropies.tolist(), self._steps, strict=True)
        return [Spoken(tuple(codes), stopped, entropy / max(1, steps)) for codes, stopped, entropy, steps in found]


def _entropies(scores: Tensor) -> Tensor:
    """[utterances] entropy of the scores in nats, float64; a code whose score is -inf adds nothing to it."""
    entropies: Tensor = torch.special.entr(scores.double().softmax(1)).sum(1)
    return entropies
