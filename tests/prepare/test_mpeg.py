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


ID3V1 = b"TAG" + b"t" * 125
LYRICS = b"LYRICSBEGIN" + b"la " * 900 + b"000123LYRICS200"


def ape(items: bytes) -> bytes:
    size = (len(items) + 32).to_bytes(4, "little")
    header = b"APETAGEX" + (2000).to_bytes(4, "little") + size + bytes([1, 0, 0, 0])
    ends = [header + (flags << 29).to_bytes(4, "little") + bytes(8) for flags in (5, 4)]
    return ends[0] + items + ends[1]


def id3(size: int) -> bytes:
    return b"ID3\x04\x00\x00" + bytes([size >> shift & 0x7F for shift in (21, 14, 7, 0)]) + b"\xff\xfb" * (size // 2)


@pytest.fixture(scope="module")
def stream() -> bytes:
    return without_first_frame(mp3(speech(16000, 1), 16000, "VARIABLE"))


def test_a_stream_with_a_gap_is_refused_and_one_with_tags_and_padding_is_not(stream: bytes) -> None:
    half = len(stream) // 2
    with pytest.raises(RefusedAudioError, match="its length is not known: behind byte"):
        clip_of(stream[:half] + b"\x01" * 2000 + stream[half:], 1.0, 30.0)
    plain = clip_of(stream, 1.0, 30.0)
    for behind in (
        ID3V1,
        bytes(900) + ID3V1,
        ape(b"a" * 9000),
        LYRICS + ID3V1,
        bytes(5000),
        b"\xff" * 5000,
        stream[:40],
    ):
        assert np.array_equal(clip_of(stream + behind, 1.0, 30.0).samples, plain.samples)
    for before in (id3(300), id3(300) + id3(20_000), bytes(3000), stream[50:90]):
        assert np.array_equal(clip_of(before + stream, 1.0, 30.0).samples, plain.samples)


@pytest.mark.parametrize("between", [ID3V1 + id3(300), ape(b"a" * 9000), LYRICS + ID3V1, b""])
def test_files_that_were_put_together_are_decoded_whole(stream: bytes, between: bytes) -> None:
    seconds = clip_of(stream, 1.0, 30.0).seconds
    assert clip_of(stream + between + stream, 1.0, 30.0).seconds == pytest.approx(2 * seconds, abs=0.1)
    # Each of them tells its own length.
    whole = mp3(speech(16000, 1), 16000, "VARIABLE")
    assert clip_of(whole + between + whole, 1.0, 30.0).seconds == pytest.approx(2 * seconds, abs=0.1)


def changed_info(whole: bytes, **values: int) -> bytes:
    """A file whose Info frame has other flags, or another number of frames."""
    at = next(place for place in (whole.find(b"Xing"), whole.find(b"Info")) if place > 0)
    flags, count = (int.from_bytes(whole[begin : begin + 4], "big") for begin in (at + 4, at + 8))
    found = {"flags": flags, "count": count} | values
    return whole[: at + 4] + found["flags"].to_bytes(4, "big") + found["count"].to_bytes(4, "big") + whole[at + 12 :]


def test_a_number_that_is_missing_or_too_small_is_made_good() -> None:
    whole = mp3(speech(16000, 1), 16000, "VARIABLE")
    assert with_length(changed_info(whole)) == whole
    for wrong in (changed_info(whole, flags=0), changed_info(whole, count=0), changed_info(whole, count=50)):
        assert clip_of(wrong, 1.0, 30.0).seconds == pytest.approx(10, abs=ENCODER_S)
    with pytest.raises(RefusedAudioError, match="its header says"):
        clip_of(whole[: len(whole) // 2], 1.0, 30.0)


def test_the_number_of_another_encoder_is_counted_too(stream: bytes) -> None:
    """libsndfile does not read a VBRI frame."""
    found = _first(stream)
    assert found is not None
    header = _Header.at(stream, found).with_space()
    about = (header.bits.to_bytes(4, "big") + bytes(32) + b"VBRI").ljust(header.size, b"\0")
    assert np.array_equal(clip_of(about + stream, 1.0, 30.0).samples, clip_of(stream, 1.0, 30.0).samples)


@pytest.mark.parametrize("content", [b"", b"ID3", id3(300)[:200], b"\xff\xfb" * 3000, bytes(9000)])
def test_where_no_frames_are_that_is_said(content: bytes) -> None:
    with pytest.raises(ValueError, match="no frames of MPEG layer III"):
        with_length(content)
