"""Speaks a script with the present weights on all ranks, and measures what was spoken."""

import contextlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol

import torch

from indextts_job.checkpoint.history import SpeakingResult, Speech
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.speaking.choice import GREEDY, Choice, sampled
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.speaking.decoder import Place, Positions, Spoken, speak
from indextts_job.speaking.metrics import Heard, Scale, figures, has_loop, longest_run
from indextts_job.speaking.script import Line, Script

MOST_TOGETHER = 64
"""Utterances of a group. A row of the released model takes 123 kB of cache in 16 bit, so 64 of 700 rows take 5 GiB."""
STEPS_PER_TURN = 8
"""Codes between two looks for a stop request: 16 to 32 ms on a GPU. A look is a collective call of all ranks."""

Interrupted = Callable[[int], bool]
"""Asked by all ranks together with the utterances that are done; True gives up."""


class Ranks(Protocol):
    """The collective operations that the check needs; every process group has them."""

    @property
    def rank(self) -> int:
        """Rank of this process."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001  # the one thing it is about
        """Whether the flag is set on at least one rank."""

    def all_gather(self, value: object) -> list[Any]:
        """The values of all ranks, in the order of the ranks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check has found; the same on all ranks."""

    result: SpeakingResult
    heard: tuple[Heard, ...]
    scale: Scale

    def lines(self) -> Iterator[str]:
        """A line of JSON for each utterance: enough to compute any other figure without speaking again."""
        rate = self.scale.codes_per_second
        for one in self.heard:
            document = {
                "key": one.key,
                "language": one.language,
                "length": len(one.codes),
                "expected": one.expected,
                "stopped": one.stopped,
                "loop": has_loop(one.codes, rate),
                "longest_run_s": longest_run(one.codes) / rate,
                "entropy": one.entropy,
                "codes": list(one.codes),
            }
            yield json.dumps(document, ensure_ascii=False) + "\n"


class SpeakingCheck:
    """The check of a run: its script, how it is spoken, and what its figures are measured with."""

    def __init__(self, script: Script, config: SpeakingConfig, scale: Scale, seed: int) -> None:
        self.script = script
        self._scale = scale
        self._choice = GREEDY if config.mode == "greedy" else sampled(seed)
        self._greedy = config.mode == "greedy"
        self._both = self._greedy and config.compare_positions

    def __call__(
        self, model: UnifiedVoice, place: Place, ranks: Ranks, step: int, interrupted: Interrupted
    ) -> Outcome | None:
        """Speak; None when interrupted. All ranks call it together.

        Args:
            model: The model, without dropout and gradients.
            place: Copies a batch to its device.
            ranks: The processes that share the script.
            step: Step of the weights.
            interrupted: Asked before every turn.

        Raises:
            torch.OutOfMemoryError: A rank cannot speak even one utterance.
        """
        mine = self.script.lines[ranks.rank :: ranks.world_size]
        recital = _Recital(partial(speak, model, place=place), mine)
        steps = chain(recital.of(self._choice, "inference"), recital.of(GREEDY, "training") if self._both else ())
        if not _to_the_end(steps, recital, ranks, interrupted):
            return None
        if ranks.any_rank(recital.out_of_memory):
            raise torch.OutOfMemoryError("out of memory while speaking one utterance, on this or another rank")
        parts = ranks.all_gather(list(recital.heard()))
        # Back into the order of the script: rank r has its lines r, r + ranks, …
        heard = [parts[number % len(parts)][number // len(parts)] for number in range(len(self.script.lines))]
        if not self._greedy:  # agreement is a figure of the likeliest codes; what is drawn differs by chance
            heard = [replace(one, reference=None) for one in heard]
        return Outcome(self._result(step, heard), tuple(heard), self._scale)

    def _result(self, step: int, heard: Sequence[Heard]) -> SpeakingResult:
        by_language: dict[str, list[Heard]] = {}
        for one in heard:
            by_language.setdefault(one.language, []).append(one)
        languages: list[Speech] = [figures(name, by_language[name], self._scale) for name in sorted(by_language)]
        return SpeakingResult(step=step, whole=figures("", heard, self._scale), languages=tuple(languages))


def _to_the_end(steps: Iterable[None], recital: "_Recital", ranks: Ranks, interrupted: Interrupted) -> bool:
    """Speak until every rank has ended; False when interrupted."""
    rest = iter(steps)
    while True:
        # By all ranks in every turn, also by those that have ended: the answer is agreed between them.
        if interrupted(recital.done):
            return False
        speaking = len(list(islice(rest, STEPS_PER_TURN))) == STEPS_PER_TURN
        if not ranks.any_rank(speaking):
            return True


_Speak = Callable[..., Generator[None, None, list[Spoken]]]


class _Recital:
    """One rank's part of the script. Groups are halved where the memory is short, which changes no code."""

    def __init__(self, speak_group: _Speak, lines: Sequence[Line]) -> None:
        self._speak, self._lines = speak_group, lines
        self._spoken: dict[Positions, list[Spoken]] = {"inference": [], "training": []}
        self.out_of_memory = False

    @property
    def done(self) -> int:
        """Utterances that have been spoken."""
        return len(self._spoken["inference"])

    def of(self, choice: Choice, positions: Positions) -> Iterator[None]:
        """Speak all lines step by step."""
        spoken, size = self._spoken[positions], MOST_TOGETHER
        while len(spoken) < len(self._lines) and not self.out_of_memory:
            group = self._lines[len(spoken) : len(spoken) + size]
            found: list[Spoken] = []
            with contextlib.suppress(torch.OutOfMemoryError):
                found = yield from self._speak([line.utterance for line in group], choice=choice, positions=positions)
            spoken += found
            size = size if found else len(group) // 2
            # Told to the others at the end: they wait for this rank in their turns.
            self.out_of_memory = not size

    def heard(self) -> Iterator[Heard]:
        """What was spoken, in the order of the lines."""
        other = self._spoken["training"]
        for place, (line, spoken) in enumerate(zip(self._lines, self._spoken["inference"], strict=True)):
            yield _heard(line, spoken, other[place] if other else None)


def _heard(line: Line, spoken: Spoken, other: Spoken | None) -> Heard:
    return Heard(
        key=line.key,
        language=line.language,
        text=tuple(line.utterance.sample.text_ids.tolist()),
        codes=spoken.codes,
        stopped=spoken.stopped,
        entropy=spoken.entropy,
        expected=line.expected,
        reference=line.reference,
        in_training=None if other is None else other.codes,
    )
