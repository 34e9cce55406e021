"""Train or validation, as a pure function of an id or a speaker: the same on every machine, whatever else is added."""

import hashlib
from typing import Literal

from indextts_job.prepare.config import SplitConfig
from indextts_job.prepare.utterances import Utterance

MILLION = 10**6


def split_of(utterance: Utterance, config: SplitConfig) -> Literal["train", "val"]:
    """The split of an utterance; what its manifest says has precedence."""
    if utterance.split:
        return utterance.split
    name = utterance.speaker if config.by == "speaker" else utterance.id
    # The rule of the public preprocessing, so that a dataset that is prepared again is split in the same way.
    place = int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) % MILLION
    return "val" if place < config.ratio * MILLION else "train"
