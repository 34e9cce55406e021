"""Speaks a script with the present weights on all ranks, and measures what was spoken."""

import contextlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol

import torch

from indextts_job.checkpoint.history import SpeakingResult, Speech
from indextts_job.errors import MAX_FINDINGS_SHOWN, DataError, DeviceMemoryError
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.speaking.choice import GREEDY, Choice, sampled
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.speaking.decoder import Place, Positions, Spoken, speak
from indextts_job.speaking.metrics import Heard, Scale, figures, has_loop, longest_run
from indextts_job.speaking.script import Line, Script

TOGETHER = 32
"""Utterances of a group. A row of the released model takes 246 kB of cache, so 32 of 700 rows take 5 GiB. Groups are
those of the script, however many ranks share them: a product may be rounded otherwise in a batch of another shape."""
STEPS_PER_TURN = 8
"""Codes between two looks for a stop request: 16 to 32 ms on a GPU. A look is a collective call of all ranks."""
WHOLE = ""
"""Name of the figures of all languages together."""

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
            DeviceMemoryError: A rank cannot speak even one utterance.
            DataError: A score was not finite.
        """
        lines = self.script.lines
        groups = [lines[first : first + TOGETHER] for first in range(0, len(lines), TOGETHER)]
        recital = _Recital(partial(speak, model, place=place), groups[ranks.rank :: ranks.world_size])
        steps = chain(recital.of(self._choice, "inference"), recital.of(GREEDY, "training") if self._both else ())
        # In 16 bit the rounding of a batch would decide between codes, and with them about the best checkpoint.
        with torch.autocast(model.mel_head.weight.device.type, enabled=False):
            if not _to_the_end(steps, recital, ranks, interrupted):
                return None
        if ranks.any_rank(recital.out_of_memory):
            raise DeviceMemoryError(
                "out of memory while the model speaks a single record, on this or another rank. "
                "speaking.mode=off goes on without this check; a device with more memory goes on with it."
            )
        _demand_finite(chain.from_iterable(ranks.all_gather(recital.not_finite())))
        parts = ranks.all_gather(list(recital.heard()))
        # Back into the order of the script: rank r has its groups r, r + ranks, …
        by_rank = [iter(part) for part in parts]
        heard = [next(by_rank[number // TOGETHER % len(parts)]) for number in range(len(lines))]
        if not self._greedy:  # agreement is a figure of the likeliest codes; what is drawn differs by chance
            heard = [replace(one, reference=None) for one in heard]
        result = self._result(step, heard, interrupted)
        return Outcome(result, tuple(heard), self._scale) if result else None

    def _result(self, step: int, heard: Sequence[Heard], interrupted: Interrupted) -> SpeakingResult | None:
        by_language: dict[str, list[Heard]] = {}
        for one in heard:
            by_language.setdefault(one.language, []).append(one)
        found: list[Speech] = []
        for name, some in (*sorted(by_language.items()), (WHOLE, heard)):
            # Figures of thousands of records take seconds. All ranks have the same records, so they ask as often.
            if interrupted(len(heard)):
                return None
            found.append(figures(name, some, self._scale))
        *languages, whole = found
        return SpeakingResult(step=step, whole=whole, languages=tuple(languages))


def _demand_finite(keys: Iterable[str]) -> None:
    """Refuse scores that were not finite, on all ranks alike: whether this checkpoint is the best cannot be said."""
    if bad := sorted(set(keys)):
        shown = ", ".join(bad[:MAX_FINDINGS_SHOWN]) + (" …" if len(bad) > MAX_FINDINGS_SHOWN else "")
        raise DataError(
            f"scores are not finite while the model speaks. Records: {shown}. Look at these records "
            "of data.validation_manifests (an emotion or conditioning array with absurd values, say); if there "
            "is nothing wrong with them, go on from an earlier checkpoint with a lower schedule.learning_rate. "
            "speaking.mode=off goes on without this check."
        )


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
    """One rank's part of the script. Groups are halved where the memory is short."""

    def __init__(self, speak_group: _Speak, groups: Sequence[Sequence[Line]]) -> None:
        self._speak, self._groups = speak_group, groups
        self._lines = list(chain.from_iterable(groups))
        self._most = TOGETHER
        self._spoken: dict[Positions, list[Spoken]] = {"inference": [], "training": []}
        self.out_of_memory = False

    @property
    def done(self) -> int:
        """Utterances that have been spoken."""
        return len(self._spoken["inference"])

    def of(self, choice: Choice, positions: Positions) -> Iterator[None]:
        """Speak all lines step by step."""
        speak_group = partial(self._speak, choice=choice, positions=positions)
        for group in self._groups:
            yield from self._of_group(speak_group, group, self._spoken[positions])

    def _of_group(self, speak_group: _Speak, group: Sequence[Line], spoken: list[Spoken]) -> Iterator[None]:
        left = list(group)
        while left and not self.out_of_memory:
            part = left[: self._most]
            found: list[Spoken] = []
            with contextlib.suppress(torch.OutOfMemoryError):
                found = yield from speak_group([line.utterance for line in part])
            spoken += found
            left = left[len(found) :]
            self._most = self._most if found else len(part) // 2
            # Told to the others at the end: they wait for this rank in their turns.
            self.out_of_memory = not self._most

    def not_finite(self) -> list[str]:
        """Keys of the lines at which a score was not finite."""
        told = (zip(self._lines, spoken, strict=False) for spoken in self._spoken.values())
        return [line.key for line, spoken in chain.from_iterable(told) if not math.isfinite(spoken.entropy)]

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
        may_stop=line.expected < line.utterance.limit,
        in_training=None if other is None else other.codes,
    )
