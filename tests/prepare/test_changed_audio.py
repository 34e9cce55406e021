"""Audio that is missing, comes back, moves or changes; and outputs that belong to something else."""

import json
import os
import shutil
from pathlib import Path

import pytest

from indextts_job.prepare.claims import Claims
from indextts_job.storage.remote_storage import open_storage
from tests.prepare.conftest import Run
from tests.prepare.outcomes import indexes, records, refused, targets
from tests.support.voices import Voices, add_clips, voice, wav


@pytest.fixture
def mine(voices: Voices, tmp_path: Path) -> Voices:
    made = voices.elsewhere(tmp_path / "mine")
    add_clips(made, 8)
    return made


class Numbered:
    number = 0


def test_a_missing_file_is_refused_and_taken_when_it_is_there(mine: Voices, run: Run, tmp_path: Path) -> None:
    late = mine.folder / "audio/s2_002.wav"
    content = late.read_bytes()
    late.unlink()
    settings = mine.settings(tmp_path / "out", max_refused=0.5)
    assert run(settings) == 0
    assert refused(tmp_path / "out") == {"u002": "file not found"}
    untouched = set(records(tmp_path / "out"))
    late.write_bytes(content)
    assert run(settings) == 0
    assert refused(tmp_path / "out") == {}
    assert len(untouched & set(records(tmp_path / "out"))) >= 1  # the other unit was not made again
    assert run(mine.settings(tmp_path / "whole")) == 0
    assert indexes(tmp_path / "out") == indexes(tmp_path / "whole")


def test_a_replaced_file_is_read_again(mine: Voices, run: Run, tmp_path: Path) -> None:
    settings = mine.settings(tmp_path / "out")
    assert run(settings) == 0
    before = indexes(tmp_path / "out")
    other = wav(voice(0, 77, 2.1))  # as long as before: the manifest's duration still fits
    (mine.folder / "audio/s0_000.wav").write_bytes(other)
    assert run(settings) == 0
    assert indexes(tmp_path / "out") != before
    assert run(mine.settings(tmp_path / "whole")) == 0
    assert indexes(tmp_path / "out") == indexes(tmp_path / "whole")


def test_a_folder_that_is_not_there_refuses_nobody(
    mine: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = mine.settings(tmp_path / "out", audio__folder=str(tmp_path / "not-mounted"))
    assert run(settings) == 65
    shown = capsys.readouterr().err
    assert "not one of 4 audio files that the manifest names one after another is there" in shown
    assert "whether the share is mounted" in shown
    assert records(tmp_path / "out") == []
    assert run(mine.settings(tmp_path / "out")) == 0
    # What was made is not thrown away for a wrong folder either.
    kept = records(tmp_path / "out")
    assert run(settings) == 65
    assert records(tmp_path / "out") == kept


def test_files_that_moved_as_they_are_give_the_same_dataset(mine: Voices, run: Run, tmp_path: Path) -> None:
    assert run(mine.settings(tmp_path / "out")) == 0
    before = indexes(tmp_path / "out")
    shutil.copytree(mine.folder / "audio", tmp_path / "moved/audio")
    assert run(mine.settings(tmp_path / "out", audio__folder=str(tmp_path / "moved"))) == 0
    assert indexes(tmp_path / "out") == before


def test_the_output_of_another_dataset_is_refused(
    mine: Voices, voices: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(mine.settings(tmp_path / "out")) == 0
    others = voices.elsewhere(tmp_path / "others")
    others.write([{**record, "id": f"x{record['id']}"} for record in mine.records()])
    shutil.copytree(mine.folder / "audio", others.folder / "audio", dirs_exist_ok=True)
    kept = indexes(tmp_path / "out")
    assert run(others.settings(tmp_path / "out")) == 78
    assert "holds a preparation of other utterances: 8 of its 8 are not in the manifests" in capsys.readouterr().err
    assert indexes(tmp_path / "out") == kept
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "train.index.safetensors").write_bytes(b"not ours")
    assert run(mine.settings(foreign)) == 78
    assert "is a dataset that was not prepared here" in capsys.readouterr().err
    assert (foreign / "train.index.safetensors").read_bytes() == b"not ours"


def test_lines_may_be_removed(mine: Voices, run: Run, tmp_path: Path) -> None:
    assert run(mine.settings(tmp_path / "out")) == 0
    mine.write(mine.records()[:-2])
    assert run(mine.settings(tmp_path / "out")) == 0
    assert targets(tmp_path / "out") <= {f"u{number:03d}" for number in range(6)}


def test_a_split_without_training_pairs_says_what_to_lower(
    mine: Voices, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write([{**record, "split": "val"} for record in mine.records()])
    assert run(mine.settings(tmp_path / "out")) == 65
    assert "no pairs to train on" in capsys.readouterr().err


def test_a_name_that_a_living_process_has_is_changed(mine: Voices, run: Run, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "out"))
    assert Claims(storage, "a").take([Numbered()]) == 0
    claim = tmp_path / "out/claims/00000-a"
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "pid": os.getppid()}))
    os.utime(claim, (0, 0))  # its unit is free: this worker does not wait for it
    assert run(mine.settings(tmp_path / "out")) == 0
    units = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out/units").iterdir())
    assert {unit["worker"] for unit in units} == {f"a-{os.getpid()}"}
