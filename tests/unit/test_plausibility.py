"""What only a whole dataset shows, on numbers alone."""

from typing import Any

import numpy as np
import pytest

from indextts_job.data.plausibility import Evidence, suspicions, uneven_sources
from indextts_job.model.versions import V2_0, V2_5, ModelVersion

PAIRS = 200


def evidence(seed: int = 0, rate: float = 25.0, **changed: Any) -> Evidence:
    """Speech as it should be: clips of 2 to 12 s, a vector for each prompt."""
    random = np.random.default_rng(seed)
    durations = random.uniform(2, 12, PAIRS)
    values = {
        "code_lengths": np.ceil(durations * rate).astype(np.int64),
        "tails": random.integers(1, 4, PAIRS),
        "durations_s": durations,
        "speakers": np.arange(PAIRS) % 5,
        "speaker_vectors": np.arange(PAIRS),
        "prompts": np.arange(PAIRS),
        "speaker_norms": random.uniform(8, 14, PAIRS),
    }
    return Evidence(**{**values, **changed})


def subjects(found: Evidence, version: ModelVersion = V2_5) -> dict[str, tuple[bool, int]]:
    return {one.subject: (one.certain, len(one.places)) for one in suspicions(found, version)}


def test_good_data_is_not_suspicious() -> None:
    assert not subjects(evidence())
    assert not subjects(evidence(rate=50.0), V2_0)


def test_nothing_is_asked_without_durations() -> None:
    assert not subjects(evidence(durations_s=np.full(PAIRS, np.nan)))


@pytest.mark.parametrize(("version", "rate"), [(V2_5, 50.0), (V2_0, 25.0)])
def test_codes_of_the_other_rate_are_a_certain_fault(version: ModelVersion, rate: float) -> None:
    found = subjects(evidence(rate=rate), version)
    assert found == {"code rate": (True, PAIRS)} or found["code rate"] == (True, PAIRS)


def test_a_rate_that_no_codec_has_is_told_and_not_refused() -> None:
    assert subjects(evidence(rate=20.0)) == {"code rate": (False, PAIRS)}


def test_a_few_tails_are_by_chance_and_many_are_padding() -> None:
    tails = np.ones(PAIRS, np.int64)
    tails[:10] = 13
    assert not subjects(evidence(tails=tails))  # 5 %
    tails[:11] = 13
    assert subjects(evidence(tails=tails)) == {"code tails": (False, 11)}
    tails[:11] = 12
    assert not subjects(evidence(tails=tails))


def test_more_codes_than_the_clip_has_are_padding() -> None:
    longer = evidence()
    longer.code_lengths[:20] += 4
    assert subjects(longer) == {"code tails": (False, 20)}


@pytest.mark.parametrize("codes", [500, 625])
def test_clips_cut_at_the_tools_maximum(codes: int) -> None:
    cut = evidence(durations_s=np.full(PAIRS, np.nan))
    cut.code_lengths[:2] = codes
    assert not subjects(cut)  # 1 %
    cut.code_lengths[:3] = codes
    assert subjects(cut) == {"cut clips": (False, 3)}


def test_vectors_of_length_one_are_a_certain_fault() -> None:
    assert subjects(evidence(speaker_norms=np.full(PAIRS, 1.0005))) == {"speaker vectors": (True, PAIRS)}
    norms = np.ones(PAIRS)
    norms[7] = 9.0
    assert not subjects(evidence(speaker_norms=norms))


def test_equal_vectors_count_within_a_speaker_and_over_different_prompts() -> None:
    # One prompt of each speaker in many pairs is no fault: it is one file.
    prompts = np.arange(PAIRS) % 5
    assert not subjects(evidence(speaker_vectors=prompts, prompts=prompts))
    # One vector of each speaker in many files is.
    assert subjects(evidence(speaker_vectors=prompts)) == {"speaker vectors": (False, PAIRS)}


def test_two_sources_of_one_language_with_codes_of_two_rates() -> None:
    (note,) = uneven_sources([("a", "am", 4.0), ("b", "am", 8.1), ("c", "en", 16.0)])
    assert note.startswith("b has 8.10 codes per text id, a 4.00, both of am")
    assert not list(uneven_sources([("a", "am", 4.0), ("b", "am", 5.0)]))
