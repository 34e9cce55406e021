"""`indextts-job speak`: codes of a checkpoint, and audio by a package that lies elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from indextts_job.cli import main
from indextts_job.demo.world import World, make_world
from indextts_job.errors import EXIT_CONFIG, EXIT_OK
from indextts_job.model.versions import V2_5
from tests.support.archived import records
from tests.support.attempts import attempt
from tests.support.runs import TINY, config_for, newest

PACKAGE = """
import json, pathlib

class IndexTTS2:
    def __init__(self, cfg_path, model_dir):
        self.folder = pathlib.Path(model_dir)
        assert pathlib.Path(cfg_path) == self.folder / "config.yaml"

    def infer(self, spk_audio_prompt, text, output_path, lang):
        files = sorted(path.name for path in self.folder.iterdir())
        pathlib.Path(output_path).write_text(json.dumps([spk_audio_prompt, text, lang, files]))
"""
"""Stands in for the published package, which has gigabytes of models: it writes what it was given."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), replace(TINY, version=V2_5, archives=False))


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    keys = {"schedule__max_steps": 10, "speaking__mode": "greedy", "speaking__records": 1, "adapter__rank": 4}
    keys |= {"speaking__texts": [{"text": "ሰላም ዓለም", "language": "am"}]}
    assert attempt(config_for(world, folder, **keys)).code == EXIT_OK
    return folder


def spoken(run: Path, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    capsys.readouterr()
    assert main(["speak", str(run), *arguments]) == EXIT_OK, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_codes_are_those_of_the_check_at_that_step(world: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = spoken(run, ["--last", "--language", "am", "--text", "ሰላም ዓለም"], capsys)
    step = newest(run).name.step
    checked = (run / f"speaking/speaking-{step:08d}.jsonl").read_text(encoding="utf-8").splitlines()
    assert line["text"] == "ሰላም ዓለም"
    # The export merges the adapter, so scores differ by rounding only.
    assert line["codes"] == json.loads(checked[-1])["codes"]


def test_several_texts_voices_and_seeds(world: World, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = records(world.train_manifest)[5]["id"]
    other = ["--voices", str(world.train_manifest), "--record", voice, "--language", "am"]
    texts = ["--text", "ሰላም", "--text", "ቡና ሻይ"]
    found = spoken(run, [*other, *texts, "--mode", "sampled", "--seed", "3"], capsys)
    assert [line["text"] for line in found] == ["ሰላም", "ቡና ሻይ"]
    assert all(str(line["key"]).endswith(voice) for line in found)
    assert spoken(run, [*other, *texts, "--mode", "sampled", "--seed", "3"], capsys) == found
    again = spoken(run, [*other, *texts, "--mode", "sampled", "--seed", "4"], capsys)
    assert [line["codes"] for line in again] != [line["codes"] for line in found]


def test_audio_is_spoken_by_the_package_with_the_export_and_the_release(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, release = tmp_path / "site/indextts", tmp_path / "release"
    package.mkdir(parents=True)
    release.mkdir()
    (package / "__init__.py").touch()
    (package / "infer_v2_5.py").write_text(PACKAGE)
    for name in ("codec.pth", "gpt.pth"):
        (release / name).write_text("of the release")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    voice = tmp_path / "voice.wav"
    voice.touch()
    arguments = ["--language", "am", "--text", "ሰላም", "--prompt", str(voice), "--release", str(release)]
    capsys.readouterr()
    assert main(["speak", str(run), *arguments, "--last", "--output-dir", str(tmp_path / "out")]) == EXIT_OK
    told = capsys.readouterr()
    (path,) = told.out.splitlines()
    assert "indextts.infer_v2_5 unknown" in told.err
    prompt, text, language, files = json.loads(Path(path).read_text())
    assert (prompt, text, language) == (str(voice), "ሰላም", "am")
    assert {"codec.pth", "gpt.pth", "config.yaml"} <= set(files)
    assert (release / "gpt.pth").read_text() == "of the release", "the export's own is spoken, the release stays"
    # A recording is somebody's work.
    assert main(["speak", str(run), *arguments, "--last", "--output-dir", str(tmp_path / "out")]) == EXIT_CONFIG
    assert f"{path} would be overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "ሰላም"], "has no language"),
        (["--text", "ሰላም", "--language", "am", "--record", "nobody"], "'nobody' is the id of no"),
        (["--text", "ሰላም", "--language", "am", "--prompt", "v.wav", "--release", "."], "--prompt v.wav: no such file"),
        (["--text", "ሰላም", "--language", "am", "--prompt", __file__, "--release", "nowhere"], "no such folder"),
        (["--text", "ሰላም", "--language", "am", "--prompt", __file__, "--release", "."], "did not speak"),
        (
            ["--text", "ሰላም", "--language", "oromo", "--prompt", __file__, "--release", "."],
            "inference does not know it",
        ),
    ],
)
def test_what_cannot_be_spoken_is_one_message(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["speak", str(run), "--last", "--output-dir", str(output), *arguments]) == EXIT_CONFIG
    assert message in capsys.readouterr().err
    assert not output.exists() or message == "did not speak", "said before gigabytes are written"


def test_a_version_that_is_not_called_with_a_language_takes_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path / "world", replace(TINY, archives=False))
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=5)).code == EXIT_OK
    (tmp_path / "release").mkdir()
    arguments = ["--last", "--text", "ሰላም", "--prompt", __file__, "--release", str(tmp_path / "release")]
    assert main(["speak", str(run), *arguments, "--output-dir", str(tmp_path / "out")]) == EXIT_CONFIG
    told = capsys.readouterr().err
    assert "the published package did not speak (indextts.infer_v2 by" in told


def test_each_recording_that_is_there_is_named_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = newest(run).name.step
    there = [tmp_path / f"step-{step:08d}-{number}.wav" for number in (0, 2)]
    for path in there:
        path.write_text("somebody's work")
    # Inference takes names of languages in any case.
    arguments = ["--last", "--language", "AM", "--prompt", __file__, "--release", str(tmp_path)]
    texts = ["--text", "ሰላም", "--text", "ቡና", "--text", "ሻይ"]
    assert main(["speak", str(run), *arguments, *texts, "--output-dir", str(tmp_path)]) == EXIT_CONFIG
    assert f"{there[0]}, {there[1]} would be overwritten" in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.iterdir()) == there
    assert {path.read_text() for path in there} == {"somebody's work"}
