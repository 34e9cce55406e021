"""The arrays of a clip depend on the clip alone: not on its neighbours, the order, or the size of a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts_job.errors import DeviceMemoryError
from indextts_job.prepare.encoders.encoders import Encoded, Encoders, batches, load_encoders
from indextts_job.prepare.encoders.semantic import Semantic
from indextts_job.prepare.frames import CONDITION_SAMPLES, even, frames_of
from indextts_job.prepare.run import read_work_list
from tests.support.voices import Voices, voice

SECONDS = (1.0, 1.013, 1.3, 1.52, 2.0)
FEW_ULPS = 1e-12


@pytest.fixture(scope="module")
def exact(voices: Voices, voices_2_5: Voices) -> dict[str, Encoders]:
    """The encoders of both versions in float64."""
    return {"2.0": _exact(voices), "2.5": _exact(voices_2_5)}


def _exact(voices: Voices) -> Encoders:
    config = voices.config("unused")
    found = load_encoders(config.encoders, config.model.base_checkpoint, read_work_list(config).model, "cpu")
    for module in (found.codec, found.conditioning, found.campplus, found.semantic.model):
        if module is not None:
            module.double()
    semantic = replace(found.semantic, mean=found.semantic.mean.double(), deviation=found.semantic.deviation.double())
    return replace(found, semantic=semantic)


CLIPS = [voice(number % 3, number, seconds).astype(np.float32) for number, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def alone(exact: dict[str, Encoders]) -> dict[str, list[Encoded]]:
    return {name: [one.encode([clip], 1, lambda: None)[0] for clip in CLIPS] for name, one in exact.items()}


@settings(max_examples=10)
@given(
    version=st.sampled_from(["2.0", "2.5"]),
    order=st.permutations(range(len(CLIPS))),
    count=st.integers(1, len(CLIPS)),
    budget=st.integers(1, 2000),
)
def test_neighbours_order_and_budget_change_nothing(
    exact: dict[str, Encoders],
    alone: dict[str, list[Encoded]],
    version: str,
    order: list[int],
    count: int,
    budget: int,
) -> None:
    chosen = order[:count]
    found = exact[version].encode([CLIPS[place] for place in chosen], budget, lambda: None)
    for place, one in zip(chosen, found, strict=True):
        expected = alone[version][place]
        np.testing.assert_array_equal(one.codes, expected.codes)
        np.testing.assert_allclose(one.condition, expected.condition, atol=FEW_ULPS, rtol=0)
        np.testing.assert_allclose(one.emotion, expected.emotion, atol=FEW_ULPS, rtol=0)


def test_clips_differ(alone: dict[str, list[Encoded]]) -> None:
    for found in alone.values():
        assert len({one.codes.tobytes() for one in found}) == len(CLIPS)
        assert len({one.condition.tobytes() for one in found}) == len(CLIPS)


def test_lengths_of_codes_follow_from_samples(alone: dict[str, list[Encoded]]) -> None:
    for clip, of_2_0, of_2_5 in zip(CLIPS, alone["2.0"], alone["2.5"], strict=True):
        pairs = frames_of(len(clip)) // 2
        assert len(of_2_0.codes) == pairs
        assert len(of_2_5.codes) == -(-pairs // 2)


def test_voice_is_that_of_the_first_fifteen_seconds(exact: dict[str, Encoders]) -> None:
    longer = voice(1, 7, 15.4).astype(np.float32)
    whole, cut = exact["2.0"].encode([longer, longer[:CONDITION_SAMPLES]], 1, lambda: None)
    np.testing.assert_array_equal(cut.condition, whole.condition)
    np.testing.assert_array_equal(cut.emotion, whole.emotion)
    assert (len(cut.codes), len(whole.codes)) == (749, 769)


@given(st.integers(400, 10**6))
def test_an_even_number_of_frames_is_kept_and_no_more_is_lost(samples: int) -> None:
    kept = even(samples)
    assert frames_of(kept) % 2 == 0
    assert kept in (samples, samples - 160)


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 2000))
def test_batches_keep_the_budget_and_take_each_clip_once(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget


class Small:
    """A device on which w2v-BERT has room for so many clips."""

    def __init__(self, inner: Semantic, room: int) -> None:
        self.inner, self.room = inner, room
        self.seen: list[int] = []

    def __call__(self, clips: list[np.ndarray]) -> list[torch.Tensor]:
        self.seen.append(len(clips))
        if len(clips) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.inner(clips)


def test_a_batch_that_does_not_fit_is_halved(exact: dict[str, Encoders], alone: dict[str, list[Encoded]]) -> None:
    small = Small(exact["2.0"].semantic, 2)
    found = replace(exact["2.0"], semantic=small).encode(CLIPS, 10**6, lambda: None)  # type: ignore[arg-type]
    assert small.seen == [5, 2, 3, 1, 2]
    for one, expected in zip(found, alone["2.0"], strict=True):
        np.testing.assert_array_equal(one.codes, expected.codes)
    with pytest.raises(DeviceMemoryError, match="does not fit the device's memory"):
        replace(exact["2.0"], semantic=Small(exact["2.0"].semantic, 0)).encode(  # type: ignore[arg-type]
            CLIPS[:2], 10**6, lambda: None
        )
