"""MP3 files without their length in front: nothing of them is lost, and nothing is refused for an estimate."""

import io

import numpy as np
import pytest

from indextts_job.prepare.audio import RefusedAudioError, clip_of, soundfile_library
from indextts_job.prepare.mpeg import _first, _Header, with_length

ENCODER_S = 0.2
"""Silence that an encoder puts at both ends, and that the number of samples in its own frame takes off again."""


def mp3(samples: np.ndarray, rate: int, mode: str) -> bytes:
    content = io.BytesIO()
    settings = {"format": "MP3", "bitrate_mode": mode, "compression_level": 0.0}
    soundfile_library().write(content, samples, rate, **settings)
    return content.getvalue()


def without_first_frame(content: bytes) -> bytes:
    found = _first(content)
    assert found is not None
    return content[found + _Header.at(content, found).size :]


def speech(rate: int, channels: int) -> np.ndarray:
    """Ten seconds in which sound and silence take turns, so that a variable rate varies."""
    time_s = np.arange(10 * rate) / rate
    noise = np.random.default_rng(0).normal(size=len(time_s))
    one = np.where(np.sin(2 * np.pi * 0.7 * time_s) > 0, 0.2 * noise, 0).astype(np.float32)
    return np.stack([one] * channels, axis=1)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (22050, 1), (24000, 1), (44100, 2), (48000, 1)])
def test_all_of_a_stream_is_decoded(rate: int, channels: int, mode: str) -> None:
    whole = mp3(speech(rate, channels), rate, mode)
    assert with_length(whole) is whole
    stream = without_first_frame(whole)
    clip = clip_of(stream, 1.0, 30.0)
    assert 0 <= clip.seconds - 10 < ENCODER_S
    assert clip.sample_rate == rate
    if mode == "VARIABLE":
        with soundfile_library().SoundFile(io.BytesIO(stream)) as file:
            assert abs(file.frames / rate - 10) > 0.5, "the test wants an estimate that is wrong"


def test_a_short_one_is_not_refused_for_an_estimate() -> None:
    rate = 16000
    loud = 0.3 * np.random.default_rng(0).normal(size=2 * rate)
    samples = np.concatenate([np.zeros(rate // 3), loud]).astype(np.float32)
    clip = clip_of(without_first_frame(mp3(samples, rate, "VARIABLE")), 1.0, 5.0)
    assert clip.seconds == pytest.approx(2.33, abs=ENCODER_S)


def test_a_tag_in_front_and_a_frame_that_was_cut_off_change_nothing() -> None:
    stream = without_first_frame(mp3(speech(16000, 1), 16000, "VARIABLE"))
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 44]) + b"T" * (2 * 128 + 44)
    plain = clip_of(stream, 1.0, 30.0)
    tagged = clip_of(tag + stream, 1.0, 30.0)
    assert np.array_equal(tagged.samples, plain.samples)
    assert tagged.sha256 != plain.sha256  # of the file as it is
    assert clip_of(stream[:-50], 1.0, 30.0).seconds == pytest.approx(plain.seconds, abs=0.1)


def test_a_stream_with_a_gap_is_refused_and_one_with_a_tag_behind_it_is_not() -> None:
    stream = without_first_frame(mp3(speech(16000, 1), 16000, "VARIABLE"))
    half = len(stream) // 2
    with pytest.raises(RefusedAudioError, match="its length is not known: behind byte"):
        clip_of(stream[:half] + b"\x01" * 2000 + stream[half:], 1.0, 30.0)
    plain = clip_of(stream, 1.0, 30.0)
    for behind in (b"TAG" + b"t" * 125, b"APETAGEX" + b"a" * 9000, bytes(5000), stream[:40]):
        assert abs(clip_of(stream + behind, 1.0, 30.0).seconds - plain.seconds) < 0.1


@pytest.mark.parametrize(
    "content", [b"", b"ID3", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f", b"\xff\xfb" * 3000, b"\x00" * 9000]
)
def test_what_is_no_stream_stays_as_it_is(content: bytes) -> None:
    assert with_length(content) is content
