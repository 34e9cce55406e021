"""The published package speaks in a process of its own; how it ends decides between a wrong setting and a failure."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indextts_job.errors import EXIT_CONFIG, ConfigError, IndexTTSJobError, UnavailableError
from indextts_job.model.versions import V2_0, V2_5, ModelVersion
from indextts_job.speaking import voice
from indextts_job.speaking.voice import Recording, record

Speak = Callable[..., dict[str, Any]]
CLASS = """
import pathlib, sys
class IndexTTS2:
    def __init__(self, **given): self.given = given
    def infer(self, output_path, **given):
"""


@pytest.fixture
def speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Speak:
    """Let a package speak one text whose `infer` has these lines."""
    package = tmp_path / "site/indextts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("PYTHONUTF8", "1")

    def speaks(lines: str, version: ModelVersion = V2_5, python: str = sys.executable) -> dict[str, Any]:
        for name in ("infer_v2", "infer_v2_5"):
            body = "\n".join(f"        {line}" for line in lines.splitlines())
            (package / f"{name}.py").write_text(CLASS + body, encoding="utf-8")
        given = Recording(
            folder=tmp_path, prompt=tmp_path / "v.wav", texts=[("ሰላም", tmp_path / "0.wav")], language="am",
            version=version,
        )  # fmt: skip
        return record(given, python)

    return speaks


WRITES = "pathlib.Path(output_path).write_text(repr(sorted(given)))"


def test_what_the_package_prints_itself_does_not_hide_what_it_is(speak: Speak, tmp_path: Path) -> None:
    told = speak(f"{WRITES}\nprint('>> starting inference', end='')\nsys.stdout.buffer.write(bytes([255]))")
    assert (told["module"], told["version"]) == ("indextts.infer_v2_5", "unknown")
    assert told["file"] == str(tmp_path / "site/indextts/infer_v2_5.py")


@pytest.mark.parametrize(("version", "names"), [(V2_0, []), (V2_5, ["lang"])])
def test_the_module_and_the_language_are_those_of_the_version(
    speak: Speak, tmp_path: Path, version: ModelVersion, names: list[str]
) -> None:
    assert speak(WRITES, version)["module"] == f"indextts.infer_v{'2_5' if names else '2'}"
    assert (tmp_path / "0.wav").read_text() == repr([*names, "spk_audio_prompt", "text"])


def test_a_package_that_is_not_there_is_a_wrong_setting(speak: Speak, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(ConfigError, match=r"did not speak .*No module named 'indextts'.* Install the package") as found:
        speak(WRITES)
    assert "Traceback" not in str(found.value)
    with pytest.raises(ConfigError, match=r"--python /no/such/python cannot be run: .*Install the package"):
        speak(WRITES, python="/no/such/python")


def test_a_package_that_fails_is_a_failure_with_the_end_of_what_it_said(speak: Speak) -> None:
    with pytest.raises(IndexTTSJobError) as found:
        speak(f"print('x' * {2 * voice.SHOWN_CHARACTERS}, file=sys.stderr)\nraise RuntimeError('no voice in it')")
    assert found.value.exit_code != EXIT_CONFIG
    assert "it ended with code 1: " in str(found.value)
    assert str(found.value).endswith("RuntimeError: no voice in it")
    assert len(str(found.value)) < voice.SHOWN_CHARACTERS + 300
    with pytest.raises(IndexTTSJobError, match="it ended with code 3: said on the way"):
        speak("print('said on the way', flush=True)\nsys.exit(3)")


def test_a_recording_that_is_not_there_is_a_failure(speak: Speak, tmp_path: Path) -> None:
    with pytest.raises(IndexTTSJobError, match=f"has ended without {tmp_path}/0.wav. it was empty") as found:
        speak("print('it was empty', file=sys.stderr)")
    assert found.value.exit_code != EXIT_CONFIG


def test_a_program_that_does_not_say_what_it_is_is_a_failure(speak: Speak) -> None:
    with pytest.raises(IndexTTSJobError, match="spoke, but what it is cannot be told: nothing more"):
        speak(f"{WRITES}\nprint('nothing more', flush=True)\nimport os\nos._exit(0)")


def test_a_program_that_hangs_is_ended(speak: Speak, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "LONGEST_S", 0.0)
    with pytest.raises(UnavailableError, match=r"has not ended in 0\.0 s"):
        speak("while True: pass")
