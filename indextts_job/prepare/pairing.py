"""Which prompts a target gets. Pure: draws are hashes of (seed, target, number), so new speakers change nobody's pairs.

A prompt has the target's split and speaker, but another id, another audio file and another text: otherwise the model
would see the answer. It lasts as long as published inference expects of a prompt.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from indextts_job.prepare.config import PairsConfig

LEAST_PROMPT_S = 2.0
TRIES = 64
"""Draws of a prompt before the others are looked through one after another: nearly all may be unsuitable."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What pairing asks of an utterance."""

    place: int
    """Its place in the work list."""
    id: str
    speaker: str
    language: str
    text: str
    audio_sha256: str
    seconds: float


Group = Mapping[str, Sequence[Candidate]]
"""The utterances of one speaker that may be prompts, by language, in the order of the work list."""


def pair(candidates: Sequence[Candidate], config: PairsConfig) -> Iterator[tuple[Candidate, list[Candidate]]]:
    """Every target with its prompts, which may be none.

    Args:
        candidates: The utterances of one split, in the order of the work list.
        config: How many prompts, and of which languages.
    """
    groups = _by_speaker(candidates)
    for target in candidates:
        yield target, _prompts(target, groups.get(target.speaker, {}), config)


def _by_speaker(candidates: Sequence[Candidate]) -> dict[str, dict[str, list[Candidate]]]:
    groups: dict[str, dict[str, list[Candidate]]] = {}
    for candidate in candidates:
        if candidate.seconds >= LEAST_PROMPT_S:
            groups.setdefault(candidate.speaker, {}).setdefault(candidate.language, []).append(candidate)
    return groups


def _prompts(target: Candidate, group: Group, config: PairsConfig) -> list[Candidate]:
    own = group.get(target.language, ())
    others = [candidate for language in sorted(group) if language != target.language for candidate in group[language]]
    chosen: list[Candidate] = []
    for number in range(config.per_target):
        # A speaker of one language has nothing else to draw from, and neither has one whose other clips are too short.
        crosses = _share(config.seed, target.id, number) < config.cross_lingual
        first, second = (others, own) if crosses else (own, ())
        prompt = _drawn(target, first, chosen, (config.seed, number)) or _drawn(
            target, second, chosen, (config.seed, number)
        )
        if prompt:
            chosen.append(prompt)
    return chosen


def _drawn(
    target: Candidate, pool: Sequence[Candidate], chosen: Sequence[Candidate], draw: tuple[int, int]
) -> Candidate | None:
    """A suitable prompt of a pool; None if there is none.

    Args:
        target: Its target.
        pool: The utterances to draw from.
        chosen: Prompts that the target has already.
        draw: Seed, and number of the prompt.
    """
    if not pool:
        return None
    taken = {prompt.id for prompt in chosen}
    start = 0
    for attempt in range(TRIES):
        start = _hashed(draw[0], target.id, draw[1], attempt) % len(pool)
        if _suits(pool[start], target, taken):
            return pool[start]
    around = (pool[(start + step) % len(pool)] for step in range(1, len(pool)))
    return next((candidate for candidate in around if _suits(candidate, target, taken)), None)


def _suits(prompt: Candidate, target: Candidate, taken: set[str]) -> bool:
    differs = prompt.id != target.id and prompt.audio_sha256 != target.audio_sha256
    return differs and prompt.id not in taken and _read_out(prompt.text) != _read_out(target.text)


@lru_cache(maxsize=2**16)
def _read_out(text: str) -> str:
    """A text without what is not heard: another form of the same characters, capitals, spaces."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _share(seed: int, target: str, number: int) -> float:
    """A number in [0, 1) that decides about the language of a prompt."""
    return _hashed(seed, target, number, -1) / 2**64


def _hashed(seed: int, target: str, number: int, attempt: int) -> int:
    text = f"{seed}\0{target}\0{number}\0{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
