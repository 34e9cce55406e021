"""Audio that is missing, comes back, moves or changes; and outputs that belong to something else."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from indextts_job.prepare.audio_files import AudioFiles
from indextts_job.prepare.changed_audio import outdated
from indextts_job.prepare.claims import Claims
from indextts_job.prepare.compute import Settings, make
from indextts_job.prepare.encoders.encoders import load_encoders
from indextts_job.prepare.run import making_of, read_work_list
from indextts_job.prepare.units import cut
from indextts_job.storage.remote_storage import open_storage
from tests.prepare.conftest import Run
from tests.prepare.outcomes import TRAIN, VALIDATION, indexes, records, refused, targets
from tests.support.faulty_filesystem import FaultyFileSystem, fresh_run
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


def test_a_replaced_file_is_read_again_and_that_is_said(
    mine: Voices, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = mine.settings(tmp_path / "out")
    assert run(settings) == 0
    assert not caplog.messages
    before = indexes(tmp_path / "out")
    other = wav(voice(0, 77, 2.1))  # as long as before: the manifest's duration still fits
    (mine.folder / "audio/s0_000.wav").write_bytes(other)
    assert run(settings) == 0
    assert caplog.messages == ["1 of 2 units are made again: 1 because audio of theirs has changed."]
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
    claims = open_storage(str(tmp_path / "out")).list("claims")
    assert [name for name in claims if "now" not in name] == [], "nobody has to wait until a claim is old"
    assert run(mine.settings(tmp_path / "out")) == 0
    # What was made is not thrown away for a wrong folder either.
    kept = records(tmp_path / "out")
    assert run(settings) == 65
    assert records(tmp_path / "out") == kept


def test_a_unit_of_one_missing_file_is_no_wrong_folder(mine: Voices, run: Run, tmp_path: Path) -> None:
    (mine.folder / "audio/s2_002.wav").unlink()
    assert run(mine.settings(tmp_path / "out", unit=1, max_refused=0.5)) == 0
    assert refused(tmp_path / "out") == {"u002": "file not found"}


class Replaced(AudioFiles):
    """Replaces a file when its version was looked at, before it is opened."""

    def version(self, url: str) -> str | None:
        before = super().version(url)
        Path(url).write_bytes(wav(voice(0, 77, 2.1)))
        return before


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(mine: Voices, tmp_path: Path) -> None:
    """The version that was known before is recorded, so the next preparation finds another one."""
    config = mine.config(tmp_path / "out")
    work = read_work_list(config)
    encoders = load_encoders(config.encoders, config.model.base_checkpoint, work.model, "cpu")
    making = making_of(config, work.model, encoders.fingerprints)
    (unit,) = cut(work.utterances[:1], 1, making)
    before = AudioFiles().version(unit.utterances[0].url)
    settings = Settings(model=work.model, making=making, batch_frames=400, threads=1, worker="a", audio=Replaced())
    made = make(unit, encoders, settings, lambda: None)
    assert made.record.utterances[0].status == "ok"
    assert made.record.utterances[0].audio_version == before
    assert outdated([(unit, made.record)], AudioFiles()) == {unit.name: "has changed"}


def in_bucket(mine: Voices) -> str:
    url = fresh_run()
    for path in sorted((mine.folder / "audio").iterdir()):
        fsspec.filesystem("memory").pipe_file(f"{url}/audio/{path.name}", path.read_bytes())
    return url


def denied(part: str) -> Any:
    def fault(verb: str, path: str) -> None:
        if verb == "read" and part in path:
            raise PermissionError(13, "Access Denied", path)

    return staticmethod(fault)


def test_one_file_that_may_not_be_read_is_refused_and_all_of_them_are_an_error(
    mine: Voices, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_bucket(mine)
    settings = mine.settings(tmp_path / "out", max_refused=0.5, audio={"folder": url})
    monkeypatch.setattr(FaultyFileSystem, "fault", denied("/audio/"))
    assert run(settings) == 77
    assert records(tmp_path / "out") == []
    claims = open_storage(str(tmp_path / "out")).list("claims")
    assert [name for name in claims if "now" not in name] == []
    monkeypatch.setattr(FaultyFileSystem, "fault", denied("s2_002"))
    assert run(settings) == 0
    assert refused(tmp_path / "out").keys() == {"u002"}
    # The listing shows it. It is asked for, and nothing is made again while it is still denied.
    kept = records(tmp_path / "out")
    assert run(settings) == 0
    assert records(tmp_path / "out") == kept
    assert [known["id"] for known in utterance_records(tmp_path / "out") if known["missing"]] == ["u002"]
    # Whoever is granted access later has it without removing anything.
    monkeypatch.setattr(FaultyFileSystem, "fault", denied("nothing"))
    assert run(settings) == 0
    assert refused(tmp_path / "out") == {}


def test_a_file_that_was_left_behind_when_the_folder_moved_changes_nothing(
    mine: Voices, run: Run, tmp_path: Path
) -> None:
    """It was a unit by itself; the arrays that were made of it are as good as before."""
    count = len(list((mine.folder / "audio").iterdir()))
    settings = {"unit": count - 1}
    assert run(mine.settings(tmp_path / "out", **settings)) == 0
    before = indexes(tmp_path / "out")
    shutil.copytree(mine.folder / "audio", tmp_path / "elsewhere/audio")
    last = json.loads((mine.folder / "voices.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    (tmp_path / "elsewhere" / last["audio"]).unlink()
    assert run(mine.settings(tmp_path / "out", audio__folder=str(tmp_path / "elsewhere"), **settings)) == 0
    assert refused(tmp_path / "out") == {}
    assert indexes(tmp_path / "out") == before


def utterance_records(output: Path) -> list[dict[str, Any]]:
    documents = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((output / "units").iterdir()))
    return [known for document in documents for known in document["utterances"]]


class Guarded(SimpleHTTPRequestHandler):
    """Gives files for a signature, but for one that it forbids while it is told so."""

    forbidden: ClassVar[set[str]] = set()
    opened: ClassVar[list[str]] = []

    def log_message(self, *_arguments: object) -> None:
        return

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        self.opened.append(name)
        if name in self.forbidden or "X-Amz-Signature=" not in query:
            self.send_error(403)
        else:
            super().do_GET()


@pytest.fixture
def address(mine: Voices, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Guarded, "forbidden", set())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(mine.folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_links_that_are_signed_anew_make_nothing_again_and_are_told_nobody(
    mine: Voices, voices: Voices, run: Run, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = voices.elsewhere(tmp_path / "signed")

    def sign(secret: str) -> None:
        query = f"X-Amz-Expires=60&X-Amz-Signature={secret}"
        signed.write([{**record, "audio": f"{record['audio']}?{query}"} for record in mine.records()])

    settings = signed.settings(tmp_path / "out", max_refused=0.5, audio={"folder": address})
    sign("0123456789abcdef")
    monkeypatch.setattr(Guarded, "forbidden", {"s2_002.wav"})
    assert run(settings) == 0
    assert refused(tmp_path / "out").keys() == {"u002"}
    assert [known["id"] for known in utterance_records(tmp_path / "out") if known["missing"]] == ["u002"]
    kept = set(records(tmp_path / "out"))
    sign("fedcba9876543210")
    assert run(settings) == 0
    assert set(records(tmp_path / "out")) == kept
    # It may be read now: its unit is made again, and no other.
    monkeypatch.setattr(Guarded, "forbidden", set())
    Guarded.opened.clear()
    assert run(settings) == 0
    assert refused(tmp_path / "out") == {}
    assert {name[3:6] for name in Guarded.opened} <= {"000", "001", "002", "003"}
    # The dataset is that of the same files without signatures.
    assert run(mine.settings(tmp_path / "whole")) == 0
    assert indexes(tmp_path / "out") == indexes(tmp_path / "whole")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"0123456789abcdef" not in written
    assert b"fedcba9876543210" not in written


def test_a_validation_set_that_is_no_longer_made_is_removed_if_it_is_ours(
    mine: Voices, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = mine.settings(tmp_path / "out")
    lines = mine.records()
    mine.write([{**one, "split": "val" if one["speaker"] == "speaker0" else "train"} for one in lines])
    assert run(settings) == 0
    assert indexes(tmp_path / "out").keys() == {TRAIN, VALIDATION}
    mine.write([{**one, "split": "train"} for one in lines])
    assert run(settings, "--assemble") == 0
    assert indexes(tmp_path / "out").keys() == {TRAIN}
    (tmp_path / "out" / VALIDATION).write_bytes(b"not ours")
    assert run(settings, "--assemble") == 0
    assert (tmp_path / "out" / VALIDATION).read_bytes() == b"not ours"
    assert caplog.messages[-1] == (
        f"{tmp_path}/out/{VALIDATION} was not written by a preparation: it is left as it is."
    )


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
    shown = capsys.readouterr().err
    assert "no pairs to train on: all 14 pairs are kept for validation. Lower validation.ratio, which is 0.2" in shown


def test_a_name_that_a_living_process_has_is_changed(mine: Voices, run: Run, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "out"))
    assert Claims(storage, "a").take([Numbered()]) == 0
    claim = tmp_path / "out/claims/00000-a"
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "pid": os.getppid()}))
    os.utime(claim, (0, 0))  # its unit is free: this worker does not wait for it
    assert run(mine.settings(tmp_path / "out")) == 0
    units = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out/units").iterdir())
    assert {unit["worker"] for unit in units} == {f"a-{os.getpid()}"}
