"""The findings that only a whole dataset shows: codes, speaker vectors or clips of the wrong kind."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

import numpy as np

from indextts_job.data.plausibility import Evidence, suspicions, uneven_sources
from indextts_job.doctor.findings import Finding, Level, data_finding
from indextts_job.doctor.survey import Pair, Survey


def examine_whole(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """Ask of each manifest what training asks of it.

    Args:
        pairs: Pairs without faults.
        found: The content of their arrays.
    """
    by_manifest: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_manifest.setdefault(pair.record.origin.rpartition(":")[0], []).append(pair)
    for manifest, of_manifest in by_manifest.items():
        for suspicion in suspicions(_evidence(of_manifest, found), found.limits.model.version):
            places = [of_manifest[place].where for place in suspicion.places]
            level: Level = "error" if suspicion.certain else "warning"
            yield data_finding(suspicion.subject, level, f"{manifest}: {suspicion.text}", suspicion.advice, places)
    for note in uneven_sources([_rate(manifest, of_manifest, found) for manifest, of_manifest in by_manifest.items()]):
        yield data_finding("code rate", "warning", note, "Encode both with the codec of the model's version.")


def _rate(manifest: str, pairs: Sequence[Pair], found: Survey) -> tuple[str, str, float]:
    """Name, most frequent language, and median of codes per text id of a manifest."""
    language = Counter(pair.record.language for pair in pairs).most_common(1)[0][0]
    rates = [
        found.arrays[pair.record.codes_path].length / found.arrays[pair.record.text_ids_path].length
        for pair in pairs
        if pair.record.language == language
    ]
    return manifest, language, statistics.median(rates)


def _evidence(pairs: Sequence[Pair], found: Survey) -> Evidence:
    codes = [found.arrays[pair.record.codes_path] for pair in pairs]
    vectors = [found.arrays[pair.record.condition_path] for pair in pairs]
    return Evidence(
        code_lengths=np.array(list(map(attrgetter("length"), codes))),
        tails=np.array(list(map(attrgetter("tail"), codes))),
        durations_s=np.array([pair.duration_s or math.nan for pair in pairs]),
        speakers=_numbered(map(attrgetter("speaker"), pairs)),
        speaker_vectors=_numbered(map(attrgetter("digest"), vectors)),
        prompts=_numbered(_prompt(pair, found) for pair in pairs),
        speaker_norms=np.array(list(map(attrgetter("norm"), vectors))),
    )


def _prompt(pair: Pair, found: Survey) -> str:
    # See `checking`: a prompt has an emotion vector of its own.
    return pair.record.emotion_path if found.limits.emotion == "prompt" else pair.record.condition_path


def _numbered(values: Iterable[str | bytes]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A number for each distinct value, -1 for an empty one."""
    numbers: dict[str | bytes, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) if value else -1 for value in values])
