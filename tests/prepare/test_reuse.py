"""What is made again after a change, and what is not: audio is opened only where an array depends on the change."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from indextts_job.demo.tiny_encoders import make_encoders
from indextts_job.model.versions import V2_0
from tests.prepare.conftest import Run
from tests.prepare.outcomes import index_of, indexes, names, records
from tests.support.faulty_filesystem import FaultyFileSystem, fresh_run
from tests.support.voices import Voices, add_clips


class Bucket:
    """Audio on a memory file system that counts how often each file is opened."""

    def __init__(self, voices: Voices) -> None:
        self.url = fresh_run()
        self.opened: list[str] = []
        self.filesystem = fsspec.filesystem("memory")
        self.fill(voices)

    def fill(self, voices: Voices) -> None:
        for path in sorted((voices.folder / "audio").iterdir()):
            self.filesystem.pipe_file(f"{self.url}/audio/{path.name}", path.read_bytes())

    def note(self, verb: str, path: str) -> None:
        if verb == "read" and "/audio/" in path:
            self.opened.append(path.rpartition("/")[2])

    def taken(self) -> list[str]:
        """The files opened since the last call."""
        opened, self.opened = sorted(self.opened), []
        return opened


@pytest.fixture
def bucket(voices: Voices, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket(voices)
    monkeypatch.setattr(FaultyFileSystem, "fault", staticmethod(made.note))
    return made


def copied(voices: Voices, folder: Path) -> Voices:
    made = voices.elsewhere(folder)
    made.write(voices.records())
    return made


def settings_of(voices: Voices, bucket: Bucket, output: Path, **keys: object) -> dict[str, Any]:
    return voices.settings(output, audio={"folder": bucket.url}, **keys)


def test_a_second_run_opens_nothing_and_leaves_the_same_bytes(
    voices: Voices, bucket: Bucket, run: Run, tmp_path: Path
) -> None:
    settings = settings_of(voices, bucket, tmp_path / "out")
    assert run(settings) == 0
    assert len(bucket.taken()) == 14
    first = indexes(tmp_path / "out")
    assert run(settings) == 0
    assert run(settings, "--assemble") == 0
    assert bucket.taken() == []
    assert indexes(tmp_path / "out") == first


def test_other_texts_split_and_pairs_open_no_audio(voices: Voices, bucket: Bucket, run: Run, tmp_path: Path) -> None:
    mine = copied(voices, tmp_path / "mine")
    settings = settings_of(mine, bucket, tmp_path / "out")
    assert run(settings) == 0
    bucket.taken()
    before = index_of(tmp_path / "out")
    lines = mine.records()
    lines[3]["text"] = "ሰላም ሰላም ሰላም ሰላም ሰላም"
    lines[4]["speaker"] = "speaker0"
    mine.write(lines)
    changed = settings_of(
        mine, bucket, tmp_path / "out", pairs={"per_target": 1, "seed": 3}, validation={"by": "speaker", "ratio": 0.5}
    )
    assert run(changed, "--assemble") == 0
    assert bucket.taken() == []
    after = index_of(tmp_path / "out")
    assert after.fingerprint != before.fingerprint
    # Everything is as if it had been prepared so from the beginning.
    assert run({**changed, "output": str(tmp_path / "fresh")}) == 0
    assert indexes(tmp_path / "fresh") == indexes(tmp_path / "out")


def test_another_tokenizer_opens_no_audio(voices: Voices, bucket: Bucket, run: Run, tmp_path: Path) -> None:
    settings = settings_of(voices, bucket, tmp_path / "out")
    assert run(settings) == 0
    bucket.taken()
    before = index_of(tmp_path / "out")
    settings["model"] = {**settings["model"], "tokenizer": str(voices.world.base_tokenizer)}
    assert run(settings, "--assemble") == 0
    assert bucket.taken() == []
    after = index_of(tmp_path / "out")
    assert after.made_for.tokenizer_sha256 != before.made_for.tokenizer_sha256
    assert after.tables["condition"] == before.tables["condition"]
    assert after.lengths["codes"].tolist() == before.lengths["codes"].tolist()


def test_another_encoder_makes_everything_again(voices: Voices, bucket: Bucket, run: Run, tmp_path: Path) -> None:
    settings = settings_of(voices, bucket, tmp_path / "out")
    assert run(settings) == 0
    assert len(bucket.taken()) == 14
    before = index_of(tmp_path / "out")
    other = make_encoders(tmp_path / "others", V2_0, seed=12)
    settings["encoders"] = {**settings["encoders"], "codec": other.settings()["codec"]}
    assert run(settings, "--assemble") == 78
    assert run(settings) == 0
    assert len(bucket.taken()) == 14
    after = index_of(tmp_path / "out")
    assert after.encoders["codec"] != before.encoders["codec"]
    assert after.digests["codes"].tolist() != before.digests["codes"].tolist()
    assert after.digests["condition"].tolist() == before.digests["condition"].tolist()


def test_appended_lines_open_only_their_units(voices: Voices, bucket: Bucket, run: Run, tmp_path: Path) -> None:
    mine = copied(voices, tmp_path / "mine")
    settings = settings_of(mine, bucket, tmp_path / "out")
    assert run(settings) == 0
    kept = records(tmp_path / "out")
    bucket.taken()
    add_clips(mine, 3, first=14)
    bucket.fill(mine)
    assert run(settings) == 0
    # Units of four: two utterances of the last one stood in a unit that was not full.
    assert sorted(name[3:6] for name in bucket.taken()) == ["012", "013", "014", "015", "016"]
    assert set(kept[:3]) <= set(records(tmp_path / "out"))
    assert {half for pair in names(tmp_path / "out") for half in pair.split("__")} >= {"u014"}


def test_assembling_needs_finished_units(
    voices: Voices, bucket: Bucket, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(voices, bucket, tmp_path / "out")
    assert run(settings, "--assemble") == 78
    assert "no worker has begun this preparation" in capsys.readouterr().err
    assert run(settings) == 0
    (tmp_path / "out/units" / records(tmp_path / "out")[1]).unlink()
    assert run(settings, "--assemble") == 78
    assert "1 of 4 units are not finished" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["record", "object", "gone"])
def test_what_is_damaged_is_made_again(voices: Voices, bucket: Bucket, run: Run, tmp_path: Path, damage: str) -> None:
    settings = settings_of(voices, bucket, tmp_path / "out")
    assert run(settings) == 0
    expected = indexes(tmp_path / "out")
    bucket.taken()
    record = tmp_path / "out/units" / records(tmp_path / "out")[2]
    stored = tmp_path / "out" / json.loads(record.read_text(encoding="utf-8"))["emotion"]["name"]
    if damage == "record":
        record.write_text("{}", encoding="utf-8")
    elif damage == "object":
        stored.write_bytes(stored.read_bytes()[:-1])
    else:
        stored.unlink()
    assert run(settings) == 0
    assert len(bucket.taken()) == 4
    assert indexes(tmp_path / "out") == expected
    assert stored.exists()


def test_a_plan_opens_nothing(
    voices: Voices, bucket: Bucket, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"w2v_bert": "a/", "statistics": "b", "codec": str(voices.manifest)}
    settings = settings_of(voices, bucket, tmp_path / "out", encoders=files)
    settings["audio"] |= {"min_seconds": 2.2, "max_seconds": 2.5}
    assert run(settings, "--plan", "--workers", "4") == 0
    said = capsys.readouterr().out
    assert "14 utterances (am 14), " in said
    assert "4 units of 4, " in said
    assert "1 units for each of 4 workers: many will wait at the end" in said
    assert "3 speakers with 4 to 5 utterances" in said
    assert "5 records last less than 2.2 or more than 2.5 s, and will be refused" in said
    assert "encoders.w2v_bert: a/model.safetensors is not there" in said
    assert "encoders.statistics: b is not there" in said
    assert said.count("is not there") == 2
    assert bucket.taken() == []
    assert not (tmp_path / "out").exists()
    # Settings may stand anywhere among the flags.
    assert run(settings, "--plan", "unit=2") == 0
    assert "7 units of 2, " in capsys.readouterr().out
