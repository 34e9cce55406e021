"""The findings that only a whole dataset shows: codes, speaker vectors or clips of the wrong kind."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from indextts_job.data.plausibility import Evidence, suspicions
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


def _evidence(pairs: Sequence[Pair], found: Survey) -> Evidence:
    codes = [found.arrays[pair.record.codes_path] for pair in pairs]
    vectors = [found.arrays[pair.record.condition_path] for pair in pairs]
    durations = [math.nan if pair.duration_s is None else pair.duration_s for pair in pairs]
    return Evidence(
        code_lengths=np.array([array.length for array in codes]),
        tails=np.array([array.tail for array in codes]),
        durations_s=np.array(durations),
        speakers=_numbered([pair.speaker for pair in pairs]),
        speaker_vectors=_numbered([array.digest for array in vectors]),
        speaker_files=_numbered([pair.record.condition_path for pair in pairs]),
        speaker_norms=np.array([array.norm for array in vectors]),
    )


def _numbered(values: Sequence[str | bytes]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A number for each distinct value, -1 for an empty one."""
    numbers: dict[str | bytes, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) if value else -1 for value in values])
