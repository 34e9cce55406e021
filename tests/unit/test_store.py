"""The store: commit, verified reading, content addressing, retention; the same on files and in memory."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from indextts_job.checkpoint.ahead import ObjectsAhead
from indextts_job.checkpoint.history import History, Losses
from indextts_job.checkpoint.manifest import FORMAT_VERSION, file_name, parse_file_name, parse_manifest
from indextts_job.checkpoint.object_layout import drafts
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.removal import SAFE_AGE_S, collect_orphans, retain
from indextts_job.checkpoint.retention import CheckpointName, current, to_delete
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import DataError, SupersededError, UnavailableError
from indextts_job.resume.points import read
from indextts_job.storage.node_cache import NodeCache
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage, StoredFile
from tests.support.stores import FaultyStorage, content, fresh_url, reopened, save
from tests.support.values import values


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(open_storage(fresh_url(request.param, tmp_path)))


def objects_in(storage: RunStorage) -> set[str]:
    return {f"{folder}/{file}" for folder in ("objects", "shared") for file in storage.list(folder)}


def test_what_was_saved_is_loaded(store: CheckpointStore) -> None:
    name = save(store, 5)
    expected = {key: tensor for group in content(5).groups for key, tensor in group.items()}
    other = reopened(store)
    assert other.names() == [name]
    loaded = other.load(other.manifest(name))
    assert loaded.keys() == expected.keys()
    assert all(
        torch.equal(loaded[key], tensor) and loaded[key].dtype == tensor.dtype for key, tensor in expected.items()
    )
    assert other.read_file(other.manifest(name), "tokenizer.model") == b"pieces"
    assert set(other.load(other.manifest(name), ("model/",))) == {"model/a", "model/b"}


def test_saving_unchanged_state_writes_only_a_manifest(store: CheckpointStore) -> None:
    save(store, 1, seed=9)
    result = store.commit(CheckpointName(2, 1, 0), content(9), lambda: None)
    manifest = f"checkpoints/{file_name(CheckpointName(2, 1, 0))}"
    assert result.bytes_written == len(store.storage.read(manifest))
    # Another process trusts what it has read, not what only has the right name and size.
    other = reopened(store)
    other.verify(result.manifest)
    third = other.commit(CheckpointName(3, 1, 0), content(9), lambda: None)
    assert third.bytes_written == len(store.storage.read(f"checkpoints/{file_name(third.manifest.name)}"))


def test_what_this_process_has_written_is_not_sent_again(tmp_path: Path) -> None:
    writes: list[str] = []

    def note(_number: int, verb: str, key: str) -> None:
        if verb == "write":
            writes.append(key)

    store = CheckpointStore(FaultyStorage(open_storage(str(tmp_path)), note))
    save(store, 1, seed=1)
    writes.clear()
    name = save(store, 2, seed=1)
    assert writes == [f"checkpoints/{file_name(name)}"]


def test_a_damaged_object_of_the_right_name_and_size_is_in_no_new_commit(store: CheckpointStore) -> None:
    """Replay gives the same bytes and so the same names: what lies there may be anything."""
    first = store.commit(CheckpointName(1, 1, 0), content(1), lambda: None).manifest
    for key in first.objects:
        store.storage.write(key, bytes(first.objects[key].size_bytes))
    other = reopened(store)
    other.verify(other.commit(CheckpointName(2, 2, 0), content(1), lambda: None).manifest)


def test_a_second_save_writes_what_changed(store: CheckpointStore) -> None:
    first = store.commit(CheckpointName(1, 1, 0), content(1), lambda: None).manifest
    second = store.commit(CheckpointName(2, 1, 0), content(2), lambda: None).manifest
    shared = first.objects.keys() & second.objects.keys()
    assert {second.tensors["base/frozen"].object, second.files["tokenizer.model"]} == shared


def test_tensor_offsets_point_at_the_bytes(store: CheckpointStore) -> None:
    manifest = store.commit(CheckpointName(1, 1, 0), content(1), lambda: None).manifest
    expected = {key: tensor for group in content(1).groups for key, tensor in group.items()}
    for key, entry in manifest.tensors.items():
        raw = store.storage.read(entry.object)[entry.start : entry.stop]
        assert raw == expected[key].numpy().tobytes()
        assert entry.shape == tuple(expected[key].shape)


def test_large_groups_are_cut_into_objects(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts_job.checkpoint.object_layout.OBJECT_BYTES", 100)
    name = save(store, 1)
    manifest = store.manifest(name)
    assert manifest.tensors["model/a"].object != manifest.tensors["model/b"].object
    assert set(store.load(manifest)) == set(manifest.tensors)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([40, 60], [["0", "1"]]),  # 100 bytes fill an object
        ([40, 64], [["0"], ["1"]]),
        ([40, 40, 40], [["0", "1"], ["2"]]),
        ([60, 60, 40], [["0"], ["1", "2"]]),
        ([400, 40], [["0"], ["1"]]),  # a larger tensor is an object of its own
        ([40, 400, 40], [["0"], ["1"], ["2"]]),
    ],
)
def test_a_group_is_cut_where_the_next_tensor_would_not_fit(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, sizes: list[int], cut: list[list[str]]
) -> None:
    monkeypatch.setattr("indextts_job.checkpoint.object_layout.OBJECT_BYTES", 100)
    group = {f"model/{number}": torch.full((size // 4,), float(number)) for number, size in enumerate(sizes)}
    for given in (group, dict(reversed(group.items()))):
        written = store.write(drafts([given]))
        by_object: dict[str, list[str]] = {}
        for key in group:
            by_object.setdefault(written.tensors[key].object, []).append(key.removeprefix("model/"))
        assert list(by_object.values()) == cut
        assert all(re.fullmatch(r"objects/[0-9a-f]{32}\.safetensors", key) for key in by_object)


def test_a_commit_adds_up_what_all_parts_have_written_and_names_files_by_their_last_suffix(
    store: CheckpointStore,
) -> None:
    parts = [store.write(drafts([{f"model/{number}": torch.full((3,), float(number))}])) for number in range(2)]
    given = replace(content(1), files={"bpe.v2.model": b"pieces"})
    before = datetime.now(UTC).replace(microsecond=0)
    result = store.publish(CheckpointName(1, 1, 0), given, parts, lambda: None)
    document = store.storage.read(f"checkpoints/{file_name(result.manifest.name)}")
    assert result.bytes_written == sum(part.new_bytes for part in parts) + len(b"pieces") + len(document)
    assert all(part.new_bytes > 0 for part in parts)
    assert re.fullmatch(r"shared/[0-9a-f]{32}\.model", result.manifest.files["bpe.v2.model"])
    created = datetime.fromisoformat(result.manifest.created)
    assert created.utcoffset() == timedelta(0)
    assert before <= created <= datetime.now(UTC)


class Flushed(FaultyStorage):
    """Notes when content that was appended was made durable, and whether that was tried again and again."""

    def __init__(self, inner: RunStorage) -> None:
        super().__init__(inner, lambda _number, verb, key: self.done.append(f"{verb} {key.partition('/')[0]}"))
        self.done: list[str] = []

    def flush(self, *, patient: bool = False) -> None:
        self.done.append(f"flush {patient}")


def test_what_the_steps_have_logged_is_durable_before_they_count(tmp_path: Path) -> None:
    storage = Flushed(open_storage(str(tmp_path)))
    save(CheckpointStore(storage), 1)
    assert storage.done[-2:] == ["flush True", "write checkpoints"]
    assert storage.done.count("flush True") == 1


def test_a_manifest_that_the_line_has_garbled_once_is_read_again(tmp_path: Path) -> None:
    inner = open_storage(str(tmp_path))
    name = save(CheckpointStore(inner), 1)
    key = f"checkpoints/{file_name(name)}"
    good = inner.read(key)
    reads: list[str] = []

    def garble(_number: int, verb: str, read: str) -> None:
        if verb == "read" and read == key:
            reads.append(read)
            inner.write(key, b"garbage" if len(reads) == 1 else good)

    assert CheckpointStore(FaultyStorage(inner, garble)).manifest(name).name == name
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_damage_anywhere_is_noticed(store: CheckpointStore, damage: str) -> None:
    manifest = store.manifest(save(store, 1))
    for key in manifest.objects:
        good = store.storage.read(key)
        if damage == "remove":
            store.storage.delete(key)
        else:
            middle = len(good) // 2
            bad = {
                "flip": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
                "truncate": good[:-1],
                "empty": b"",
            }[damage]
            store.storage.write(key, bad)
        with pytest.raises(DamagedCheckpointError, match=key.rpartition("/")[2][:12]):
            reopened(store).verify(manifest)
        store.storage.write(key, good)
    reopened(store).verify(manifest)


def test_a_damaged_object_is_written_again_by_the_next_save(store: CheckpointStore) -> None:
    manifest = store.manifest(save(store, 1))
    key = manifest.tensors["base/frozen"].object
    store.storage.write(key, b"damaged")
    fresh = reopened(store)
    with pytest.raises(DamagedCheckpointError):
        fresh.verify(manifest)
    name = save(fresh, 2)
    reopened(store).verify(fresh.manifest(name))


def test_a_superseded_attempt_leaves_no_manifest(store: CheckpointStore) -> None:
    def fence() -> None:
        raise SupersededError("attempt 2 has started")

    with pytest.raises(SupersededError):
        store.commit(CheckpointName(1, 1, 0), content(1), fence)
    assert store.names() == []


def test_a_commit_asks_before_every_object_whether_to_go_on(store: CheckpointStore) -> None:
    asked: list[int] = []

    def go_on() -> None:
        asked.append(len(store.storage.list("objects")))
        if len(asked) == 3:
            raise UnavailableError("given up")

    with pytest.raises(UnavailableError, match="given up"):
        store.commit(CheckpointName(1, 1, 0), content(1), lambda: None, go_on)
    assert len(asked) == 3
    assert len(store.storage.list("objects")) == 2  # of the three groups; what was begun comes to its end
    assert store.names() == []


def test_an_object_that_retention_removed_is_restored_by_the_same_process(store: CheckpointStore) -> None:
    manifest = store.manifest(save(store, 1))
    stored = manifest.objects[manifest.tensors["model/a"].object]
    data = store.storage.read(stored.key)
    save(store, 2)
    assert retain(store, 1) == [CheckpointName(1, 1, 0)]
    assert stored.key.rpartition("/")[2] not in store.storage.list("objects")
    assert store.restore(stored, data)
    assert store.storage.read(stored.key) == data


def test_retention_keeps_newest_best_and_final(store: CheckpointStore) -> None:
    for step in range(1, 8):
        save(store, step, tags=("best",) if step in (1, 2) else ())
        retain(store, 3)
    assert [name.step for name in store.names()] == [2, 5, 6, 7]
    save(store, 8, tags=("final",))
    save(store, 9)
    save(store, 10)
    save(store, 11)
    retain(store, 2)
    assert [name.step for name in store.names()] == [2, 8, 10, 11]
    for name in store.names():
        reopened(store).verify(store.manifest(name))
    named = {key for name in store.names() for key in store.manifest(name).objects}
    assert objects_in(store.storage) == named


def test_an_object_that_comes_back_after_its_removal_is_written_again(store: CheckpointStore) -> None:
    save(store, 1, seed=1)
    save(store, 2, seed=2)
    retain(store, 1)
    name = save(store, 3, seed=1)
    reopened(store).verify(store.manifest(name))


def test_a_checkpoint_that_could_not_be_read_is_not_deleted(store: CheckpointStore) -> None:
    damaged = save(store, 1)
    for step in (2, 3, 4):
        save(store, step)
    assert retain(store, 1, untouchable=[damaged]) == [CheckpointName(2, 1, 0), CheckpointName(3, 1, 0)]
    assert damaged in store.names()


def test_orphans_are_removed_only_when_old(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    name = save(store, 1)
    folder = tmp_path / "run/objects"
    named = [path.name for path in folder.iterdir()]
    young, old = (f"{letter * 32}.safetensors" for letter in "ab")
    for file in (young, old, ".tmp-1-young", ".tmp-1-old"):
        (folder / file).write_bytes(b"left behind")
    long_ago = time.time() - SAFE_AGE_S - 10
    for file in (old, ".tmp-1-old", *named):
        os.utime(folder / file, (long_ago, long_ago))
    assert collect_orphans(store) == 1
    left = {path.name for path in folder.iterdir()}
    assert {young, ".tmp-1-young"} <= left
    assert not {old, ".tmp-1-old"} & left
    reopened(store).verify(store.manifest(name))


def test_what_somebody_removed_is_written_again_by_the_same_process(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    save(store, 1)
    for path in (tmp_path / "run/objects").iterdir():
        path.unlink()
    reopened(store).verify(store.manifest(save(store, 2)))


@pytest.mark.parametrize("left", [0, 10])
def test_what_somebody_cut_off_is_written_again_by_the_same_process(tmp_path: Path, left: int) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    save(store, 1, seed=1)
    for path in (tmp_path / "run/objects").iterdir():
        path.write_bytes(path.read_bytes()[:left])
    reopened(store).verify(store.manifest(save(store, 2, seed=1)))


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_an_object_found_damaged_is_mended_by_the_process_that_wrote_it(store: CheckpointStore, damage: str) -> None:
    manifest = store.manifest(save(store, 1))
    stored = manifest.objects[manifest.tensors["base/frozen"].object]
    good = store.storage.read(stored.key)
    store.storage.write(stored.key, good[:-1] if damage == "cut off" else good[:-1] + bytes([good[-1] ^ 1]))
    found = {
        "cut off": f"{len(good) - 1} bytes, expected {len(good)}.",
        "altered": f"its bytes do not have the hash {stored.xxh3[:12]}….",
    }[damage]
    with pytest.raises(DamagedCheckpointError, match=re.escape(f"{store.storage.url}/{stored.key}: {found}") + "$"):
        store.verify(manifest)
    assert not store.restore(stored, b"something else")
    assert store.restore(stored, good)
    assert store.storage.read(stored.key) == good


def test_a_manifest_under_the_name_of_another_is_none(store: CheckpointStore) -> None:
    """Somebody has copied or renamed a file: a step that it does not hold would be resumed from."""
    name, other = save(store, 5), CheckpointName(9, 1, 0)
    store.storage.write(f"checkpoints/{file_name(other)}", store.storage.read(f"checkpoints/{file_name(name)}"))
    with pytest.raises(DamagedCheckpointError, match=f"{file_name(other)}: its content says {file_name(name)}"):
        store.manifest(other)
    newest = store.newest()
    assert newest is not None
    assert newest.name == name


def test_a_manifest_that_is_gone_or_damaged_is_named(store: CheckpointStore) -> None:
    name = save(store, 5)
    where = f"{store.storage.url}/checkpoints/{file_name(name)}"
    store.storage.write(f"checkpoints/{file_name(name)}", b"garbage")
    with pytest.raises(DataError, match=re.escape(f"{where}: not a checkpoint manifest")):
        store.manifest(name)
    store.storage.delete(f"checkpoints/{file_name(name)}")
    with pytest.raises(DamagedCheckpointError, match=re.escape(f"{where}: no such checkpoint.") + "$"):
        store.manifest(name)


def test_names_round_trip_and_sort_by_step() -> None:
    names = [CheckpointName(1000, 3, 7, ("final", "best")), CheckpointName(5, 12345, 0), CheckpointName(10**9, 1, 1)]
    assert [parse_file_name(file_name(name)) for name in names] == names
    files = sorted(file_name(CheckpointName(step, 1, 0)) for step in (5, 50, 500, 99_999_999))
    assert [name.step for name in map(parse_file_name, files) if name] == [5, 50, 500, 99_999_999]
    assert parse_file_name("latest.json") is None


def test_the_newest_line_of_thousands_is_found_as_pair_by_pair() -> None:
    """Against the definition, which compares every pair: later attempts that resumed before a step supersede it."""
    random = Random(0)
    for _ in range(200):
        names = [
            CheckpointName(random.randrange(12), random.randrange(1, 6), random.randrange(12))
            for _ in range(random.randrange(12))
        ]
        expected = [
            name
            for name in sorted(names, reverse=True)
            if not any(other.attempt > name.attempt and other.attempt_start < name.step for other in names)
        ]
        assert current(names) == expected


def test_going_back_supersedes_later_checkpoints_until_they_are_passed() -> None:
    old = [CheckpointName(step, 1, 0) for step in (10, 20, 30)]
    assert current(old) == old[::-1]
    back = CheckpointName(15, 2, 10)
    assert [name.step for name in current([*old, back])] == [15, 10]
    assert to_delete([*old, back], keep=5) == []
    passed = CheckpointName(25, 2, 10)
    assert to_delete([*old, back, passed], keep=5) == [old[1]]
    zombie = CheckpointName(28, 1, 0)
    assert current([*old, back, zombie])[0] == back


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "not a checkpoint manifest"),
        (b'{"format": "indextts-job checkpoint", "form', "not a checkpoint manifest"),
        (b"[]", "not a checkpoint manifest"),
        (b'{"format": "other"}', "not a checkpoint manifest"),
        (b'{"format": "indextts-job checkpoint", "format_version": 99}', "format 99, this version reads 2"),
        (b'{"format": "indextts-job checkpoint", "format_version": 2}', "does not have the hash"),
    ],
)
def test_a_bad_manifest_is_explained(document: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_manifest(document, "run/checkpoints/x.json")


def test_no_flipped_bit_of_a_manifest_is_accepted(store: CheckpointStore) -> None:
    key = f"checkpoints/{file_name(save(store, 1))}"
    good = store.storage.read(key)
    white = b" \n"
    for position in range(0, len(good), 7):
        flipped = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        if good[position] in white and flipped[position] in white:
            continue
        with pytest.raises((DataError, UnicodeDecodeError)):
            parse_manifest(flipped, "x")


def test_a_manifest_is_documented_json(store: CheckpointStore) -> None:
    name = save(store, 1)
    document = json.loads(store.storage.read(f"checkpoints/{file_name(name)}"))
    assert document["format_version"] == FORMAT_VERSION
    assert list(document) == [
        *("format", "format_version", "step", "attempt", "attempt_start", "tags", "created"),
        *("objects", "tensors", "files", "values", "sha256"),
    ]


def test_a_checkpoint_that_a_person_keeps_while_retention_runs_keeps_its_objects(tmp_path: Path) -> None:
    """Retention has chosen it already when it gets its tag."""
    store = CheckpointStore(open_storage(str(tmp_path)))
    names = [save(store, step) for step in range(1, 4)]
    person = CheckpointStore(open_storage(str(tmp_path)))
    delete = store.storage.delete
    kept: list[CheckpointName] = []

    def while_deleting(key: str) -> None:
        if not kept:
            kept.append(person.keep(names[0]))
        delete(key)

    store.storage.delete = while_deleting  # type: ignore[method-assign]
    retain(store, 1)
    store.verify(store.manifest(kept[0]))


def test_a_checkpoint_that_is_being_removed_cannot_be_kept_any_more(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)))
    name = save(store, 1)
    store.storage.delete(next(iter(store.manifest(name).objects)))
    with pytest.raises(DataError, match="was being removed"):
        store.keep(name)
    assert store.names() == [name]


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"garbage"])
def test_a_manifest_without_content_hides_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    """Its name may say anything: the highest attempt, the highest step."""
    store = CheckpointStore(open_storage(str(tmp_path)))
    name = save(store, 5)
    store.storage.write(f"checkpoints/{file_name(CheckpointName(9, 9999, 0))}", content)
    newest = store.newest()
    assert newest is not None
    assert newest.name == name


def test_without_a_manifest_that_can_be_read_the_newest_one_is_complained_about(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)))
    assert store.newest() is None
    names = [CheckpointName(step, 1, 0) for step in (1, 2, 3)]
    for name in names:
        store.storage.write(f"checkpoints/{file_name(name)}", b"garbage")
    with pytest.raises(DataError, match=f"/{file_name(names[-1])}: not a checkpoint manifest"):
        store.newest()


def test_files_that_are_no_objects_of_ours_are_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)))
    save(store, 1)
    notes = tmp_path / "objects/NOTES.txt"
    notes.write_text("mine", encoding="utf-8")
    os.utime(notes, (0, 0))
    collect_orphans(store)
    assert notes.exists()


def test_an_object_that_somebody_removed_is_found_although_this_process_wrote_it(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)))
    manifest = store.manifest(save(store, 1))
    gone = next(iter(manifest.objects.values()))
    assert store.damaged(manifest.objects.values()) == []
    store.storage.delete(gone.key)
    assert store.damaged(manifest.objects.values()) == [gone]


def test_damage_is_found_among_whole_objects_in_their_order(store: CheckpointStore) -> None:
    manifest = store.manifest(save(store, 1))
    every = list(manifest.objects.values())
    assert len(every) == 4
    good = {stored.key: store.storage.read(stored.key) for stored in every}
    store.storage.delete(every[0].key)
    store.storage.write(every[2].key, good[every[2].key][:-1] + b"x")
    store.storage.write(every[3].key, good[every[3].key][:-1])
    # Who wrote them reads none of them again; who did not finds what was altered too.
    assert store.damaged(every) == [every[0], every[3]]
    other = reopened(store)
    assert other.damaged(every) == [every[0], every[2], every[3]]
    for stored in every:
        assert other.restore(stored, good[stored.key])
    assert other.damaged(every) == []
    reopened(store).verify(manifest)


def test_an_object_that_was_found_whole_is_not_read_again(tmp_path: Path) -> None:
    manifest = (inner := CheckpointStore(open_storage(str(tmp_path)))).manifest(save(inner, 1))
    reads: list[str] = []

    def note(_number: int, verb: str, key: str) -> None:
        if verb == "read":
            reads.append(key)

    store = CheckpointStore(FaultyStorage(inner.storage, note))
    for _ in range(2):
        assert store.damaged(manifest.objects.values()) == []
    assert sorted(reads) == sorted(manifest.objects)
    store.look_again()
    assert store.damaged(manifest.objects.values()) == []
    assert sorted(reads) == sorted([*manifest.objects] * 2)


def test_what_was_removed_and_found_missing_is_written_by_the_process_that_wrote_it_first(
    store: CheckpointStore,
) -> None:
    manifest = store.manifest(save(store, 1))
    stored = manifest.objects[manifest.files["tokenizer.model"]]
    store.storage.delete(stored.key)
    assert store.damaged([stored]) == [stored]
    assert store.restore(stored, b"pieces")
    assert store.read_file(manifest, "tokenizer.model") == b"pieces"


class Aged(FaultyStorage):
    """All files of a folder are as old as the test says."""

    def __init__(self, inner: RunStorage, age_s: float) -> None:
        super().__init__(inner, lambda _number, _verb, _key: None)
        self.age_s = age_s
        self.tidied: list[tuple[str, float]] = []

    def list(self, folder: str) -> dict[str, StoredFile]:
        return {file: replace(info, age_s=self.age_s) for file, info in super().list(folder).items()}

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        self.tidied.append((folder, older_than_s))


def test_an_orphan_goes_when_it_is_older_than_any_save(tmp_path: Path) -> None:
    storage = Aged(open_storage(str(tmp_path)), SAFE_AGE_S)
    store = CheckpointStore(storage)
    manifest = store.manifest(save(store, 1))
    store.write(drafts([{"model/lost": torch.ones(3)}, {"model/lost too": torch.ones(4)}]))
    storage.write("probes/of-an-attempt-that-was-killed", b"first")
    assert collect_orphans(store) == 0
    assert storage.list("probes")
    storage.age_s += 1
    assert collect_orphans(store) == 2
    assert not storage.list("probes")
    store.verify(manifest)
    assert objects_in(storage) == set(manifest.objects)
    folders = ("", "checkpoints", "objects", "shared", "attempts", "hardware")
    assert storage.tidied == [(folder, SAFE_AGE_S) for folder in folders] * 2
    # It comes back in the process that has removed it.
    (lost,) = store.write(drafts([{"model/lost": torch.ones(3)}])).objects.values()
    assert storage.read(lost.key)


def test_an_orphan_that_was_collected_is_written_when_it_is_wanted_again(tmp_path: Path) -> None:
    storage = Aged(open_storage(str(tmp_path)), SAFE_AGE_S + 1)
    store = CheckpointStore(storage)
    save(store, 1)
    (lost,) = store.write(drafts([{"model/lost": torch.ones(3)}])).objects.values()
    data = storage.read(lost.key)
    assert collect_orphans(store) == 1
    assert store.restore(lost, data)
    assert storage.read(lost.key) == data


def test_without_a_manifest_no_object_is_an_orphan(tmp_path: Path) -> None:
    storage = Aged(open_storage(str(tmp_path)), SAFE_AGE_S + 1)
    store = CheckpointStore(storage)
    (lost,) = store.write(drafts([{"model/lost": torch.ones(3)}])).objects.values()
    assert collect_orphans(store) == 0
    assert storage.read(lost.key)


def changed_history(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What is said of a manifest whose history somebody has changed, with the hash of what it holds."""
    store = CheckpointStore(open_storage(str(tmp_path)))
    history = History().after_step(LOSSES, 1.0).after_validation(3, LOSSES)
    name = CheckpointName(3, 1, 0)
    store.commit(name, content(3, values=values(history=history)), lambda: None)
    (path,) = (tmp_path / "checkpoints").iterdir()
    document = json.loads(path.read_bytes())
    change(document["values"]["history"])
    del document["sha256"]
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    signed = document | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    try:
        parse_manifest(json.dumps(signed).encode(), "manifest")
    except DataError as error:
        return str(error)
    return ""


LOSSES = Losses(text_loss=1.0, mel_loss=1.0, mel_top1=0.5, total=1.0)


@pytest.mark.parametrize(
    "key", ["samples", "tokens", "interval", "validations", "best", "validations_without_improvement"]
)
def test_a_history_that_lacks_something_is_no_history(tmp_path: Path, key: str) -> None:
    assert f"values.history.{key} is missing" in changed_history(tmp_path, lambda history: history.pop(key))


def test_a_history_knows_every_key_at_every_depth(tmp_path: Path) -> None:
    assert changed_history(tmp_path, len) == ""
    assert changed_history(tmp_path / "older", lambda history: history.pop("overfitting_since")) == ""
    deep = changed_history(tmp_path / "deep", lambda history: history["validations"][0]["losses"].update(x=1.0))
    assert "values.history.validations[0].losses.x is a key that this release does not know" in deep
    assert "interval.steps is missing" in changed_history(
        tmp_path / "sums", lambda history: history.update(interval={})
    )


def test_an_object_that_was_found_missing_is_written_again(store: CheckpointStore) -> None:
    manifest = store.manifest(save(store, 3))
    tokenizer = manifest.objects[manifest.files["tokenizer.model"]]
    store.storage.delete(tokenizer.key)
    with pytest.raises(DamagedCheckpointError):
        store.read_file(manifest, "tokenizer.model")
    assert store.restore(tokenizer, b"pieces")
    assert store.read_file(manifest, "tokenizer.model") == b"pieces"


def test_objects_stay_while_a_manifest_that_stays_cannot_be_read(tmp_path: Path) -> None:
    """It may name any of them, and somebody may restore it."""
    storage = open_storage(str(tmp_path))
    earlier = CheckpointStore(storage)
    save(earlier, 1, seed=7)
    kept = save(earlier, 2, seed=7, tags=("keep",))
    save(earlier, 3)
    key = f"checkpoints/{file_name(kept)}"
    manifest = storage.read(key)
    storage.write(key, manifest[:-40])
    store = CheckpointStore(storage)
    assert retain(store, 1) == [CheckpointName(1, 1, 0)]
    storage.write(key, manifest)
    reopened(store).verify(store.manifest(kept))


@pytest.mark.parametrize("change", [{"start": 1}, {"start": -4}])
def test_a_tensor_that_no_view_can_show_is_in_no_manifest(tmp_path: Path, change: dict[str, int]) -> None:
    storage = open_storage(str(tmp_path))
    name = save(CheckpointStore(storage), 1)
    document = json.loads(storage.read(f"checkpoints/{file_name(name)}"))
    entry = document["tensors"]["model/b"]
    moved = {"start": entry["start"] + change["start"], "stop": entry["stop"] + change["start"]}
    document["tensors"]["model/b"] = entry | (moved if change["start"] > 0 else change)
    plain = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    signed = plain | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    with pytest.raises(DataError, match="lacks or garbles"):
        parse_manifest(json.dumps(signed).encode(), "m")


def test_lost_objects_come_back_from_the_copies_on_the_node(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    cache = NodeCache(tmp_path / "cache", "run")
    writing = CheckpointStore(storage, cache)
    name = save(writing, 1)
    manifest = writing.manifest(name)
    writing.wait_for_copies()
    lost = next(stored for key, stored in manifest.objects.items() if key.startswith("objects/"))
    storage.delete(lost.key)
    point = read(CheckpointStore(storage, cache), name)
    assert "written again from the copies on this node" in point.repaired[0]
    assert point.lost == ()
    reopened(writing).verify(manifest)


def test_objects_that_nobody_takes_are_given_up(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    save(CheckpointStore(storage), 3)
    ahead = ObjectsAhead()
    assert ahead.begin(storage, None)
    store = CheckpointStore(storage, None, ahead)
    manifest = store.manifest(store.names()[0])
    assert set(store.load(manifest, ("model/",))) == {"model/a", "model/b"}
    ahead.close()
    moments = next(stored for key, stored in manifest.objects.items() if key == manifest.tensors["exp_avg/a"].object)
    assert ahead.take(moments) is None
    assert ahead.begin(storage, None)  # too late: a retry of its listing has taken longer than the start
    assert ahead.take(moments) is None
    assert set(store.load(manifest, ("exp_avg/",))) == {"exp_avg/a", "exp_avg/b"}


def test_what_was_read_ahead_is_compared_with_its_hash(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    name = save(CheckpointStore(storage), 3)
    manifest = CheckpointStore(storage).manifest(name)
    lost = manifest.objects[manifest.tensors["model/a"].object]
    storage.write(lost.key, bytes(lost.size_bytes))
    ahead = ObjectsAhead()
    assert ahead.begin(storage, None)
    with pytest.raises(DamagedCheckpointError, match="do not have the hash"):
        CheckpointStore(storage, None, ahead).load(manifest)


def test_every_save_looks_again_whether_what_it_relies_on_is_there(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        name = save(store, step, seed=9)
        manifest = store.manifest(name)
        reopened(store).verify(manifest)
        for key in manifest.objects:
            store.storage.delete(key)


def test_a_commit_does_not_rest_on_an_object_of_which_only_the_copy_was_read(tmp_path: Path) -> None:
    storage, cache = open_storage(str(tmp_path / "run")), NodeCache(tmp_path / "cache", "run")
    writing = CheckpointStore(storage, cache)
    manifest = writing.manifest(save(writing, 1, seed=9))
    writing.wait_for_copies()
    for key, stored in manifest.objects.items():
        storage.write(key, bytes(stored.size_bytes))  # damaged, with the right name and size
    ahead = ObjectsAhead()
    assert ahead.begin(storage, cache)
    store = CheckpointStore(storage, cache, ahead)
    assert store.load(manifest, ("model/",))
    reopened(store).verify(store.manifest(save(store, 2, seed=9)))
