"""Everything that is refused or warned about is named when it is planted; a clean recording has no finding."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts_job.prepare.audio import RefusedAudioError, clip_of
from indextts_job.prepare.loudness import levels_of, warnings_of
from tests.prepare.conftest import Run
from tests.prepare.outcomes import names, refused, summary_of, targets, warned
from tests.support.voices import RATE, Signal, Voices, add_clips, voice, wav

CLEAN = voice(0, 1)


def encoded(samples: Signal, kind: str, rate: int = RATE, subtype: str | None = None) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return content.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(RefusedAudioError) as found:
        clip_of(content, 1.0, 30.0)
    return str(found.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no audio at all" * 100, "not decodable: Format not recognised"),
        (wav(CLEAN)[: len(wav(CLEAN)) // 2], "its header says"),
        (encoded(CLEAN, "FLAC")[:9000], "not decodable"),
        (wav(CLEAN[:0]), "decodes to no samples"),
        (wav(CLEAN[: RATE // 2]), "lasts 0.50 s, expected 1 to 30 s"),
        (wav(np.tile(CLEAN, 15)), "lasts 33.00 s, expected 1 to 30 s"),
        (encoded(np.where(np.arange(len(CLEAN)) == 99, np.nan, CLEAN), "WAV", subtype="FLOAT"), "not finite"),
        (wav(CLEAN * 2e-3), "its level is -7"),
        (wav(CLEAN * 0), "its level is -200 dBFS"),
        (wav(np.stack([CLEAN, -CLEAN], axis=1)), "its channels cancel each other"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_audio_is_refused_by_name(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


def test_an_impossible_rate_is_refused() -> None:
    content = bytearray(wav(CLEAN))
    content[24:28] = (10_000_000).to_bytes(4, "little")
    assert "at 10000000 Hz" in refusal(bytes(content))


def test_a_file_that_says_it_is_too_long_is_refused_before_it_is_decoded() -> None:
    """A compressed file of some megabytes may hold gigabytes of samples."""
    content = bytearray(encoded(CLEAN, "FLAC"))
    content[22:26] = (3600 * RATE).to_bytes(4, "big")  # the low digits of the number of samples in STREAMINFO
    assert refusal(bytes(content)) == "lasts 3600.00 s, expected 1 to 30 s"


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", None), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_every_format_of_the_specification_is_decoded(kind: str, subtype: str | None) -> None:
    clip = clip_of(encoded(CLEAN, kind, subtype=subtype), 1.0, 30.0)
    assert clip.seconds == pytest.approx(2.2, abs=0.01)
    assert list(warnings_of(clip.levels, clip.sample_rate)) == []


def test_channels_are_averaged() -> None:
    mono = clip_of(wav(0.5 * CLEAN), 1.0, 30.0).samples
    stereo = clip_of(wav(np.stack([CLEAN, 0 * CLEAN], axis=1)), 1.0, 30.0).samples
    np.testing.assert_allclose(stereo, mono, atol=1e-4)


def padded(front: float, back: float, noise: float = 1e-4) -> Signal:
    random = np.random.default_rng(5)
    ends = [noise * random.normal(size=round(seconds * RATE)) for seconds in (front, back)]
    return np.concatenate([ends[0], CLEAN, ends[1]])


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (CLEAN, RATE, []),
        (CLEAN[::2], RATE // 2, ["sample rate below 16000 Hz"]),
        (np.clip(CLEAN * 40, -1, 1), RATE, ["over 0.1% of the samples clipped"]),
        (padded(1.3, 0), RATE, ["over 1 s of silence at an end"]),
        (padded(0, 1.3), RATE, ["over 1 s of silence at an end"]),
        (padded(0.9, 0.9), RATE, []),
        (padded(2.0, 2.0), RATE, ["over 1 s of silence at an end", "over 60% silence"]),
        (np.where(np.arange(len(CLEAN)) % RATE < RATE // 5, 0, CLEAN), RATE, ["over 10% digital silence"]),
    ],
)
def test_suspicious_audio_is_warned_about(samples: Signal, rate: int, expected: list[str]) -> None:
    assert list(warnings_of(levels_of(samples, rate), rate)) == expected


Plant = Callable[[Voices, dict[str, Any]], None]


def rewritten(samples: Signal) -> Plant:
    return lambda voices, record: _rewrite(voices, record, samples)


def _rewrite(voices: Voices, record: dict[str, Any], samples: Signal) -> None:
    (voices.folder / record["audio"]).write_bytes(wav(samples))
    record["duration"] = len(samples) / RATE


def changed(**values: object) -> Plant:
    return lambda _voices, record: record.update(values)


REFUSED: dict[str, tuple[Plant, str]] = {
    "not found": (lambda voices, record: (voices.folder / record["audio"]).unlink(), "file not found"),
    "a folder": (changed(audio="audio"), "file not found"),
    "duration": (changed(duration=4.0), "its manifest says 4.00 s"),
    "too many codes": (rewritten(voice(1, 2, 8.3)), "has 414 codes, the model's limit is 400"),
    "no text": (changed(text="  "), "has no text"),
    "too fast": (changed(text="ሰላም ዓለም " * 16), "characters of am per second"),
    "too slow": (changed(text="ሰላ"), "0.8 characters of am per second, expected 2 to 40"),
}
WARNED: dict[str, tuple[Plant, str]] = {
    "digits": (lambda _voices, record: record.update(text=record["text"] + " 12"), "digits, which are not spelt out"),
    "script": (changed(text="ሰላም THIS IS ENGLISH"), "letters of another script"),
    "unknown": (lambda _voices, record: record.update(text=record["text"] + " ☃☃"), "over 1% unknown pieces"),
    "same audio": (changed(audio="audio/s0_000.wav", duration=2.1), "the same audio under two ids"),
}


def test_a_clean_recording_has_no_finding(voices: Voices, run: Run, tmp_path: Path) -> None:
    assert run(voices.settings(tmp_path / "out")) == 0
    summary = summary_of(tmp_path / "out")
    assert (summary["taken"], summary["refused"], summary["warnings"]) == (14, 0, {})


def test_every_planted_fault_is_refused_by_name_and_costs_nobody_else(
    voices: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = voices.elsewhere(tmp_path / "planted")
    records = add_clips(planted, 24)
    wanted = {}
    for record, (plant, reason) in zip(records[3:], REFUSED.values(), strict=False):
        plant(planted, record)
        wanted[record["id"]] = reason
    for record, (plant, _) in zip(records[12:], WARNED.values(), strict=False):
        plant(planted, record)
    planted.write(records)
    assert run(planted.settings(tmp_path / "out", max_refused=0.05)) == 65
    said = capsys.readouterr().err
    found = refused(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert reason in found[name]
        assert f"{name}: " in said
    assert "7 of 24 utterances (29.2%) were refused, max_refused is 5.0%" in said
    # Everything else is done: the rest is a dataset that trains.
    assert len(targets(tmp_path / "out")) == 24 - 7 - summary_of(tmp_path / "out")["without_prompt"]
    assert not found.keys() & {half for pair in names(tmp_path / "out") for half in pair.split("__")}
    warnings = warned(tmp_path / "out")
    for record, (_, warning) in zip(records[12:], WARNED.values(), strict=False):
        assert record["id"] in warnings[warning]
    # The tokenizer has no pieces for digits either. Nobody else is warned about.
    assert {name for ids in warnings.values() for name in ids} == {record["id"] for record in records[12:16]}
    assert run(planted.settings(tmp_path / "out", max_refused=0.5)) == 0


def test_long_texts_are_refused_over_the_limit_of_the_model() -> None:
    from indextts_job.prepare.text_checks import Spoken, refusal, warnings

    spoken = Spoken("ሰላም " * 200, "am", [5] * 601, 40.0, None)
    assert refusal(spoken, 600) == "601 text ids, the model's limit is 600"
    assert refusal(spoken, 601) == ""
    assert list(warnings(spoken, 2, {"am": "ETHIOPIC"})) == ["over 120 text ids"]


def test_a_unit_of_bad_clips_alone_is_a_unit(voices: Voices, run: Run, tmp_path: Path) -> None:
    planted = voices.elsewhere(tmp_path / "planted")
    records = add_clips(planted, 14)
    for record in records[:4]:
        (planted.folder / record["audio"]).write_bytes(b"")
    assert run(planted.settings(tmp_path / "out", max_refused=0.5)) == 0
    assert refused(tmp_path / "out").keys() == {record["id"] for record in records[:4]}
    assert not targets(tmp_path / "out") & refused(tmp_path / "out").keys()
