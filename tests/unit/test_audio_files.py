"""What is known of audio files without opening them, and which finished units have to be made again for it."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from indextts_job.data.shard_index import Shard
from indextts_job.errors import DataError
from indextts_job.prepare.audio_files import MISSING, AudioFiles, place_of
from indextts_job.prepare.changed_audio import counted, outdated
from indextts_job.prepare.records import StoredObject, UnitRecord, UtteranceRecord
from indextts_job.prepare.units import Making, Unit, cut
from indextts_job.prepare.utterances import Utterance
from indextts_job.storage import files

SIGNED = "X-Amz-Expires=60&X-Amz-Signature=0123456789abcdef"
BUCKET = "memory://audio-files"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A bucket with two files in each of two folders; the folders that are listed, in their order."""
    filesystem, listed, inner = fsspec.filesystem("memory"), [], MemoryFileSystem.ls

    def counting(self: MemoryFileSystem, path: str, *given: Any, **named: Any) -> Any:
        listed.append(path)
        return inner(self, path, *given, **named)

    for name in ("a/one.wav", "a/two.wav", "b/one.wav", "b/below/three.wav"):
        filesystem.pipe_file(f"{BUCKET}/{name}", name.encode())
    monkeypatch.setattr(MemoryFileSystem, "ls", counting)
    yield listed
    monkeypatch.undo()
    filesystem.rm(BUCKET, recursive=True)


def test_the_version_of_a_local_file_is_its_size_and_time(tmp_path: Path) -> None:
    path, audio = tmp_path / "a.wav", AudioFiles()
    path.write_bytes(b"1234")
    os.utime(path, ns=(7, 7))
    assert audio.version(str(path)) == audio.version(f"file://{path}") == "4 7"
    os.utime(path, ns=(8, 8))
    assert audio.version(str(path)) == "4 8"


@pytest.mark.parametrize("name", ["none.wav", "none/a.wav", "file/a.wav", "folder", "a\0b", "x" * 300])
def test_what_nobody_can_read_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert AudioFiles().version(f"{tmp_path}/{name}") == MISSING
    assert not AudioFiles().is_there(f"{tmp_path}/{name}")


def test_of_a_path_that_cannot_be_looked_at_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert AudioFiles().version(str(tmp_path / "loop.wav")) is None


def test_each_folder_of_a_bucket_is_listed_once(listings: list[str]) -> None:
    audio = AudioFiles()
    found = [audio.version(f"{BUCKET}/{name}") for name in ("a/one.wav", "a/two.wav", "b/one.wav", "a/one.wav")]
    assert all(found)
    assert found[0] == found[3] != found[1]
    assert len(listings) == 2
    assert [audio.version(f"{BUCKET}/{name}") for name in ("a/none.wav", "none/a.wav", "b/below")] == [MISSING] * 3
    assert audio.is_there(f"{BUCKET}/a/two.wav")
    assert not audio.is_there(f"{BUCKET}/a/none.wav")
    # Those who prepare again look anew.
    fsspec.filesystem("memory").pipe_file(f"{BUCKET}/a/one.wav", b"another")
    assert audio.version(f"{BUCKET}/a/one.wav") == found[0]
    assert AudioFiles().version(f"{BUCKET}/a/one.wav") != found[0]


def test_a_bucket_that_may_not_be_listed_is_asked_for_each_file(
    listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some keys may read objects and not list them; a preparation with such a key works."""
    exists = MemoryFileSystem.exists
    inner = MemoryFileSystem.ls
    asked: list[str] = []

    def denied(_self: MemoryFileSystem, path: str, *_given: Any, **_named: Any) -> Any:
        raise PermissionError(13, "Access Denied", path)

    def asking(self: MemoryFileSystem, path: str, **named: Any) -> bool:
        asked.append(path)
        with monkeypatch.context() as allowed:
            allowed.setattr(MemoryFileSystem, "ls", inner)
            return bool(exists(self, path, **named))

    monkeypatch.setattr(MemoryFileSystem, "ls", denied)
    monkeypatch.setattr(MemoryFileSystem, "exists", asking)
    audio = AudioFiles()
    assert audio.version(f"{BUCKET}/a/one.wav") is None
    assert audio.is_there(f"{BUCKET}/a/one.wav")
    assert not audio.is_there(f"{BUCKET}/a/none.wav")
    assert len(asked) == 2


def test_a_web_server_is_asked_only_where_a_file_was_missing(tmp_path: Path, address: str) -> None:
    (tmp_path / "a.wav").touch()
    assert AudioFiles().version("http://127.0.0.1:9/a.wav") is None, "nobody listens there, and nobody is asked"
    assert AudioFiles().is_there(f"{address}/a.wav?{SIGNED}")
    assert not AudioFiles().is_there(f"{address}/none.wav?{SIGNED}")


def test_a_place_is_without_links_and_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "share").symlink_to("disk")
    assert place_of(f"{tmp_path}/share/a.wav") == place_of(f"file://{tmp_path}/disk/a.wav") == f"{tmp_path}/disk/a.wav"
    monkeypatch.chdir(tmp_path.parent)
    assert place_of(f"{tmp_path.name}/a.wav") == f"{tmp_path}/a.wav"
    assert place_of("/a.wav") == "/a.wav"
    assert place_of(f"https://host/x/a.wav?{SIGNED}") == "https://host/x/a.wav"
    assert place_of("https://user:word@host/a.wav") == "https://***@host/a.wav"
    assert place_of("s3://bucket/x/a.wav") == "s3://bucket/x/a.wav"


def utterance(name: str, url: str, audio: str = "") -> Utterance:
    return Utterance(
        id=name, audio=audio or url, url=url, text="t", speaker="s", language="am", duration_s=None, split="",
        origin="m:1",
    )  # fmt: skip


def test_a_file_is_named_without_what_signs_its_link() -> None:
    """What names a file is in the key of its unit, and in the dataset: a link that is signed anew changes neither."""
    assert utterance("a", f"https://host/x/a.wav?{SIGNED}").reference == "https://host/x/a.wav"
    assert utterance("a", f"https://host/x/a.wav?{SIGNED}", f"a.wav?{SIGNED}").reference == "a.wav"
    assert utterance("a", "https://user:word@host/a.wav").reference == "https://***@host/a.wav"
    assert utterance("a", "/folder/what?.wav", "what?.wav").reference == "what?.wav"


MAKING = Making(encoders={}, min_seconds=1.0, max_seconds=30.0, most_codes=400)
NOTHING = StoredObject(name="codes", size_bytes=0, sha256="")


def refused(name: str, **known: Any) -> UtteranceRecord:
    return UtteranceRecord(id=name, status="refused", reason="bad", **known)


def taken(name: str, **known: Any) -> UtteranceRecord:
    return UtteranceRecord(id=name, status="ok", audio_sha256="0" * 64, **known)


def finished(*pairs: tuple[str, UtteranceRecord]) -> list[tuple[Unit, UnitRecord]]:
    """A unit of these URLs, and its record."""
    (unit,) = cut([utterance(known.id, url) for url, known in pairs], len(pairs), MAKING)
    rows = Shard(name="rows", rows=len(pairs), size_bytes=0, data_start=0, sha256="")
    record = UnitRecord(
        unit=0, key=unit.key, worker="w", seconds=1.0, codes=NOTHING, condition=rows, condition_shape=(1,),
        emotion=rows, checks={}, utterances=tuple(known for _, known in pairs),
    )  # fmt: skip
    return [(unit, record)]


def reasons(*pairs: tuple[str, UtteranceRecord]) -> list[str]:
    return list(outdated(finished(*pairs), AudioFiles()).values())


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A local file that is there."""
    path = tmp_path / "clip.wav"
    path.write_bytes(b"12345")
    os.utime(path, ns=(7, 7))
    return str(path)


def test_audio_that_was_missing_is_looked_for(clip: str) -> None:
    gone = f"{clip}.gone"
    assert reasons((clip, refused("a", place=clip, missing=True))) == ["was missing and is there now"]
    assert reasons((gone, refused("a", place=gone, missing=True))) == []
    # Records of earlier releases say it in words alone.
    earlier = UtteranceRecord(id="a", status="refused", reason="file not found")
    assert reasons((clip, earlier)) == ["was missing and is there now"]
    assert reasons((gone, earlier)) == []
    assert reasons((clip, refused("a", place=clip, audio_version="5 7"))) == [], "refused for what is in it"


def test_audio_that_has_changed_is_read_again_and_what_has_vanished_is_not(clip: str) -> None:
    assert reasons((clip, taken("a", place=clip, audio_version="5 7"))) == []
    assert reasons((clip, taken("a", place=clip, audio_version="4 7"))) == ["has changed"]
    assert reasons((clip, refused("a", place=clip, audio_version="4 7"))) == ["has changed"]
    assert reasons((f"{clip}.gone", taken("a", place=f"{clip}.gone", audio_version="4 7"))) == []
    # Nothing was known then, or nothing is known now.
    assert reasons((clip, taken("a"))) == []
    web = "http://127.0.0.1:9/a.wav"
    assert reasons((web, taken("a", place=web, audio_version="4 7"))) == []


def test_audio_that_lies_elsewhere_is_read_again(clip: str) -> None:
    assert reasons((clip, taken("a", place="/before/clip.wav", audio_version="5 7"))) == ["lies elsewhere now"]
    web = "http://127.0.0.1:9/a.wav"
    assert reasons((web, taken("a", place="http://127.0.0.1:9/before/a.wav"))) == ["lies elsewhere now"]


def test_a_folder_without_a_single_file_of_a_unit_is_a_wrong_folder(clip: str) -> None:
    gone = [f"{clip}.gone-{number}" for number in range(2)]
    moved = [(url, taken(url, place=f"/before/{number}.wav")) for number, url in enumerate(gone)]
    with pytest.raises(DataError) as found:
        reasons(*moved)
    folder, _, name = gone[0].rpartition("/")
    assert f"{folder}: not one of 2 audio files that the manifest names one after another is there" in str(found.value)
    assert f"the first is {name}. Check audio.folder" in str(found.value)
    # A stray file of the same name does not make a folder right.
    many = [(f"{clip}.gone-{number}", taken(str(number), place=f"/before/{number}.wav")) for number in range(5)]
    with pytest.raises(DataError, match="not one of 5 audio files"):
        reasons(*many, (clip, taken("c", place="/before/clip.wav")))
    # One that is there shows that the folder is right, and what was refused was not made from any file.
    assert reasons(*moved, (clip, taken("c", place="/before/clip.wav"))) == ["lies elsewhere now"]
    assert reasons(moved[0], (clip, refused("c", place=clip, audio_version="5 7"))) == []
    assert reasons(*[(url, refused(url, place=f"/before/{url}")) for url in gone]) == []
    # Where it lies is as before: the files were removed after the unit was made.
    assert reasons(*[(url, taken(url, place=place_of(url))) for url in gone]) == []


def test_reasons_are_counted_by_units() -> None:
    found = {"1": "has changed", "2": "lies elsewhere now", "3": "has changed"}
    assert list(counted(found)) == [
        "2 because audio of theirs has changed",
        "1 because audio of theirs lies elsewhere now",
    ]


def test_versions_of_a_bucket_tell_contents_of_one_size_apart(listings: list[str]) -> None:
    before = files.versions(f"{BUCKET}/b")
    assert before.keys() == {"one.wav"}, "no folders, and nothing that lies in them"
    assert before["one.wav"].startswith("9 ")
    fsspec.filesystem("memory").pipe_file(f"{BUCKET}/b/one.wav", b"b/two.wav")
    assert files.versions(f"{BUCKET}/b")["one.wav"] != before["one.wav"]
    assert files.versions(f"{BUCKET}/none") == {}
