"""Chooses the next code from the scores of a step, as published inference does with one beam.

The order is inference's: repetition penalty, temperature, top-k, top-p. The penalty divides a positive score and
multiplies a negative one, for every code in the history; each counts once. The history begins with placeholders, whose
value is 1, and the start code, so the codes 1 and `start_mel_token` are penalised from the first step on.
Source: `gpt/model_v2.py` of the releases, and the vendored generation code of transformers 4.52.1 that it calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indextts_job.data.order import derive_seed

PLACEHOLDER = 1
"""The id that inference fills the history with, one for each row of the prefix."""

TIES = 4
"""So many times k codes are looked at; no k codes have equal scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a code is drawn. The defaults are those of published inference."""

    temperature: float = 0.8
    top_k: int = 30
    top_p: float = 0.8
    seed: int = 0
    """The run's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How codes are chosen."""

    penalty: float = 1.0
    """Repetition penalty; 1 = none."""
    sampling: Sampling | None = None
    """None = the code with the highest score, of equal ones the lowest."""


GREEDY = Choice()


def sampled(seed: int) -> Choice:
    """The settings of published inference, but with one beam instead of three.

    Args:
        seed: The run's.
    """
    return Choice(penalty=10.0, sampling=Sampling(seed=seed))


def penalised(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Scores behind the repetition penalty.

    Args:
        scores: [utterances, codes].
        history: [utterances, codes] whether a code is in the history.
        penalty: The penalty.
    """
    if penalty == 1:
        return scores
    return torch.where(history, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def highest(scores: Tensor) -> Tensor:
    """[utterances] the code with the highest score, of equal ones the lowest: `argmax` may take any of them.

    A score that is not a number is below all others. It is a code in every case: no table is read beyond its end.
    """
    ids = torch.arange(scores.shape[1], device=scores.device)
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    is_highest = scores == scores.amax(1, keepdim=True)
    return torch.where(is_highest, ids, scores.shape[1]).amin(1)


def drawn(scores: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """[utterances] codes drawn by the inverse of the sorted cumulative probabilities, in float64.

    No generator has a state: the numbers are given, so neither batch nor number of devices changes a code.

    Args:
        scores: [utterances, codes] behind the penalty.
        sampling: Temperature, top-k and top-p.
        uniforms: [utterances] float64 on the host, at least 0 and below 1.
    """
    # Stable: of equal scores the lower code comes first.
    ordered, ids = torch.sort(scores.double() / sampling.temperature, dim=1, descending=True, stable=True)
    # On the host: a GPU adds up in no fixed order. A few more than the k-th, for codes with an equal score.
    ordered, ids = (found[:, : TIES * sampling.top_k].cpu() for found in (ordered, ids))
    # Inference keeps all codes that are as high as the k-th.
    last = ordered[:, : sampling.top_k][:, -1:]
    probabilities = ordered.masked_fill(ordered < last, -torch.inf).softmax(1)
    # The mass of a code and of all less likely ones has to exceed 1 - p. The likeliest code always stays.
    kept = probabilities.flip(1).cumsum(1).flip(1) > 1 - sampling.top_p
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(1)
    place = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1)
    # The product of a number just below 1 may be rounded up to the whole mass.
    place = torch.minimum(place, kept.sum(1) - 1)
    return ids.gather(1, place[:, None])[:, 0].to(scores.device)


def uniforms_of(seed: int, keys: Sequence[int], step: int) -> Tensor:
    """[utterances] float64: a number in [0, 1) for each (seed, utterance, step).

    Args:
        seed: The run's.
        keys: Keys of the utterances.
        step: Number of the code, from 0.
    """
    # 53 of 63 bits: as many as a float64 holds.
    values = [(derive_seed(seed, key, step) >> 10) / 2**53 for key in keys]
    return torch.tensor(values, dtype=torch.float64)
