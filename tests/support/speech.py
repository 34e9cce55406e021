"""Speaks with small models to the end."""

from collections.abc import Sequence

import torch

from indextts_job.model.batch import Sample
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.speaking.choice import GREEDY, Choice
from indextts_job.speaking.decoder import Positions, Speaking, Spoken, Utterance, speak
from indextts_job.training.engine import to_device

CPU = torch.device("cpu")


def utterances(samples: Sequence[Sample], limit: int) -> list[Utterance]:
    return [Utterance(sample=sample, limit=limit, key=sample.index) for sample in samples]


def to_the_end(speaking: Speaking) -> list[Spoken]:
    try:
        while True:
            next(speaking)
    except StopIteration as end:
        found: list[Spoken] = end.value
        return found


def spoken(
    model: UnifiedVoice,
    given: Sequence[Utterance],
    choice: Choice = GREEDY,
    positions: Positions = "inference",
    group: int = 1000,
) -> list[Spoken]:
    """What a model speaks, in groups of this size."""
    dtype = model.mel_head.weight.dtype
    found = []
    with torch.no_grad():
        for first in range(0, len(given), group):
            part = given[first : first + group]
            found += to_the_end(speak(model, part, lambda batch: to_device(batch, CPU, dtype), choice, positions))
    return found
