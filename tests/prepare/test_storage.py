"""Two finishers of one unit, storage that is away, and claims."""

import errno
import itertools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.errors import StoppedError
from indextts_job.preemption.deadline import StopRequest
from indextts_job.prepare.claims import LEAST_AGE_S, Claims
from indextts_job.prepare.compute import Settings, make
from indextts_job.prepare.encoders.encoders import load_encoders
from indextts_job.prepare.run import making_of, prepare, read_work_list
from indextts_job.prepare.unit_store import UnitStore
from indextts_job.prepare.units import Unit, cut
from indextts_job.report.liveness import pid_namespace
from indextts_job.storage.local_storage import TEMPORARY_PREFIX
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage, StoredFile
from tests.prepare.conftest import Run
from tests.prepare.outcomes import index_of, indexes, records, refused
from tests.support.faulty_filesystem import FaultyFileSystem, fresh_run
from tests.support.stores import FaultyStorage
from tests.support.voices import Voices


class Lawless(FaultyStorage):
    """A store that ignores the condition of a create without a word."""

    def create(self, key: str, content: bytes) -> None:
        self.write(key, content)


def made_twice(voices: Voices, storage: RunStorage) -> tuple[UnitStore, list[Unit], list[bool]]:
    """One unit finished by two workers whose arrays differ, as those of two kinds of GPU do."""
    config = voices.config("unused", unit=4)
    work = read_work_list(config)
    encoders = load_encoders(config.encoders, config.model.base_checkpoint, work.model, "cpu")
    making = making_of(config, work.model, encoders.fingerprints)
    units = cut(work.utterances, 4, making)
    store = UnitStore(storage)
    committed = []
    for worker in ("a", "b"):
        settings = Settings(model=work.model, making=making, batch_frames=400, threads=1, worker=worker)
        made = make(units[0], encoders, settings, lambda: None)
        for name, content in made.objects.items():
            store.write_object(name, content, store.objects())
        committed.append(store.commit(units[0], made.record))
        with np.errstate():
            encoders.conditioning.emo_layer.bias.data += 1e-6
    return store, units[:1], committed


def nothing(_number: int, _verb: str, _key: str) -> None:
    """No fault."""


@pytest.mark.parametrize("lawful", [True, False])
def test_two_finishers_leave_one_record_and_whole_objects(voices: Voices, tmp_path: Path, lawful: bool) -> None:
    inner = open_storage(str(tmp_path / "out"))
    store, units, committed = made_twice(voices, (FaultyStorage if lawful else Lawless)(inner, nothing))
    assert committed == [True, not lawful]
    assert len(inner.list("units")) == 1
    found = store.records(units)
    assert found is not None
    (record,) = found
    assert record.worker == ("a" if lawful else "b")
    # The arrays differ, so both finishers wrote objects of their own, and those of the record are whole.
    assert sum(name.startswith("emotion-") for name in inner.list("")) == 2
    for stored in (record.codes, record.condition, record.emotion):
        store.read_object(stored.name, stored.size_bytes, stored.sha256)


def away(wanted: str, verb: str) -> Any:
    def fault(found: str, path: str) -> None:
        if found == verb and wanted in path:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

    return staticmethod(fault)


@pytest.mark.parametrize(("part", "verb"), [("/audio/", "read"), ("/units/", "write"), ("/condition-", "write")])
def test_storage_that_is_away_ends_with_69_and_refuses_nobody(
    voices: Voices, run: Run, monkeypatch: pytest.MonkeyPatch, part: str, verb: str
) -> None:
    import fsspec

    url = fresh_run()
    for path in sorted((voices.folder / "audio").iterdir()):
        fsspec.filesystem("memory").pipe_file(f"{url}/audio/{path.name}", path.read_bytes())
    settings = voices.settings(f"{url}/out", audio={"folder": url})
    monkeypatch.setattr("indextts_job.storage.files.READ_PATIENCE_S", 0.0)
    monkeypatch.setattr(FaultyFileSystem, "fault", away(part, verb))
    assert run(settings) == 69
    storage = open_storage(f"{url}/out")
    assert storage.list("units") == {}
    assert "refused.jsonl" not in storage.list("")
    monkeypatch.setattr(FaultyFileSystem, "fault", staticmethod(lambda _verb, _path: None))
    assert run(settings) == 0
    assert refused(f"{url}/out") == {}


def test_a_stop_ends_within_a_batch_and_keeps_finished_units(voices: Voices, tmp_path: Path) -> None:
    config = voices.config(tmp_path / "out", unit=2)
    work = read_work_list(config)
    asked = []

    def stop() -> StopRequest | None:
        asked.append(len(open_storage(str(tmp_path / "out")).list("units")))
        return StopRequest("SIGTERM", 0.0, 30.0) if asked[-1] == 3 else None

    with pytest.raises(StoppedError, match="finished units are committed"):
        prepare(config, work, "a", stop, lambda _done, _all: None)
    assert len(records(tmp_path / "out")) == 3
    assert [name for name in open_storage(str(tmp_path / "out")).list("claims") if "now" not in name] == []
    # Asked before the unit, before its batch and before both of its clips.
    assert asked.count(2) >= 4
    prepare(config, work, "b", lambda: None, lambda _done, _all: None)
    assert index_of(tmp_path / "out").names
    prepare(voices.config(tmp_path / "whole", unit=2), work, "a", lambda: None, lambda _done, _all: None)
    assert indexes(tmp_path / "whole") == indexes(tmp_path / "out")


class Clocked:
    """A storage whose time stamps are those of a clock of its own."""

    def __init__(self, inner: RunStorage) -> None:
        self.inner, self.now_s, self.skew_s = inner, 1000.0, 0.0
        self.written: dict[str, float] = {}

    def write(self, key: str, content: bytes) -> None:
        self.inner.write(key, content)
        self.written[key.rpartition("/")[2]] = self.now_s

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def read(self, key: str) -> bytes:
        return self.inner.read(key)

    def list(self, folder: str) -> dict[str, StoredFile]:
        age = {name: self.now_s - self.written[name] + self.skew_s for name in self.inner.list(folder)}
        return {name: StoredFile(0, max(0.0, seconds)) for name, seconds in age.items()}


class Numbered:
    def __init__(self, number: int) -> None:
        self.number = number


def claims_of(storage: Clocked, worker: str) -> Claims:
    return Claims(storage, worker, lambda: storage.now_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("skew_s", [0.0, 500.0])
def test_claims_keep_workers_apart_until_they_are_old(tmp_path: Path, skew_s: float) -> None:
    storage = Clocked(open_storage(str(tmp_path)))
    storage.skew_s = skew_s  # the clock of this machine against that of the storage
    units = [Numbered(number) for number in range(3)]
    one, two, three, four = (claims_of(storage, name) for name in ("one", "two", "three", "four"))
    taken = [claims.take(units) for claims in (one, two, three)]
    assert sorted(number for number in taken if number is not None) == [0, 1, 2]
    assert four.take(units) is None
    # A worker that was started again takes its own claim at once.
    assert claims_of(storage, "two").take(units) == taken[1]
    storage.now_s += LEAST_AGE_S - 1
    assert four.take(units) is None
    one.renew()
    storage.now_s += 2
    # `one` has renewed its claim; those of `two` and `three` are too old.
    assert four.take(units) in {taken[1], taken[2]}


def test_a_name_that_a_living_process_has_is_not_shared(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))

    def claimed_by(pid: int, node: str = platform.node(), name: str = "a") -> str:
        record = AttemptRecord(node=node, pid=pid, pid_namespace=pid_namespace(), launched="2200-01-01T00:00:00+00:00")
        storage.write(f"claims/00003-{name}", json.dumps(record.to_json()).encode())
        claims = Claims(storage, "a")
        claims.keep_apart()
        return claims.worker

    assert claimed_by(os.getppid(), name="b") == "a"
    assert claimed_by(os.getppid()) == f"a-{os.getpid()}"
    assert claimed_by(os.getppid(), "elsewhere") == "a"
    assert claimed_by(2**22 - 1) == "a"  # nobody has this number
    assert claimed_by(os.getpid()) == "a"  # its own, from before
    storage.write("claims/00003-a", b"")
    claims = Claims(storage, "a")
    claims.keep_apart()
    assert claims.worker == "a"


def test_a_claim_from_the_future_holds_a_unit_no_longer_than_others(tmp_path: Path) -> None:
    storage, clock = open_storage(str(tmp_path)), [0.0]
    other = Claims(storage, "other", lambda: clock[0])
    assert other.take([Numbered(0)]) == 0
    (path,) = (tmp_path / "claims").glob("00000-*")
    os.utime(path, (time.time() + 86400, time.time() + 86400))
    mine = Claims(storage, "mine", lambda: clock[0])
    assert mine.take([Numbered(0)]) is None
    assert mine.holders([Numbered(0)]) == "other on unit 0"
    clock[0] += LEAST_AGE_S + 1
    assert mine.take([Numbered(0)]) == 0


def test_a_worker_that_writes_its_claim_again_lives_whatever_its_clock_says(tmp_path: Path) -> None:
    storage = Clocked(open_storage(str(tmp_path)))
    ahead, mine = claims_of(storage, "ahead"), claims_of(storage, "mine")
    assert ahead.take([Numbered(0)]) == 0

    def from_the_future() -> None:
        storage.written["00000-ahead"] = storage.now_s + 86400

    from_the_future()
    assert mine.take([Numbered(0)]) is None
    for _ in range(4):
        storage.now_s += LEAST_AGE_S - 1
        ahead.renew()
        from_the_future()
        assert mine.take([Numbered(0)]) is None
    storage.now_s += LEAST_AGE_S + 1
    assert mine.take([Numbered(0)]) == 0


def test_a_claim_from_the_future_does_not_make_others_old(tmp_path: Path) -> None:
    storage = Clocked(open_storage(str(tmp_path)))
    storage.skew_s = 500.0
    one, two, mine = (claims_of(storage, name) for name in ("one", "two", "mine"))
    assert one.take([Numbered(0)]) == 0
    assert two.take([Numbered(1)]) == 1
    storage.written["00001-two"] = storage.now_s + 86400
    assert mine.take([Numbered(0)]) is None


def test_those_who_are_waited_for_are_named_and_many_are_counted(tmp_path: Path) -> None:
    storage = Clocked(open_storage(str(tmp_path)))
    units = [Numbered(number) for number in range(5)]
    for unit in units:
        assert claims_of(storage, f"w{unit.number}").take([unit]) == unit.number
    mine = claims_of(storage, "mine")
    assert mine.holders(units) == "w0 on unit 0, w1 on unit 1, w2 on unit 2 and 2 more"
    assert mine.holders(units[:3]) == "w0 on unit 0, w1 on unit 1, w2 on unit 2"


def test_a_worker_without_work_says_once_whom_it_waits_for(
    voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("indextts_job.prepare.worker.LOOK_S", 0.0)
    config = voices.config(tmp_path / "out", unit=14)
    work = read_work_list(config)
    storage = open_storage(str(tmp_path / "out"))
    assert Claims(storage, "other").take([Numbered(0)]) == 0
    asked = itertools.count()

    def stop() -> StopRequest | None:
        return StopRequest("SIGTERM", 0.0, 30.0) if next(asked) > 9 else None

    with pytest.raises(StoppedError):
        prepare(config, work, "a", stop, lambda _done, _all: None)
    assert caplog.messages == ["waiting for other on unit 0."]


def test_claims_of_long_units_are_kept_for_three_unit_times(tmp_path: Path) -> None:
    storage = Clocked(open_storage(str(tmp_path)))
    one, two = claims_of(storage, "one"), claims_of(storage, "two")
    assert one.take([Numbered(0)]) == 0
    two.took(100.0)
    storage.now_s += 299
    assert two.take([Numbered(0)]) is None
    storage.now_s += 2
    assert two.take([Numbered(0)]) == 0


def test_the_older_of_two_claims_wins(tmp_path: Path) -> None:
    storage = Clocked(open_storage(str(tmp_path)))

    class Raced(Clocked):
        """Another worker claims the same unit between the listing and the write."""

        def write(self, key: str, content: bytes) -> None:
            if key.endswith("0-b"):
                storage.write("claims/00000-a", b"")
                storage.now_s += 3
            storage.write(key, content)

    raced = Raced(storage.inner)
    raced.list = storage.list  # type: ignore[method-assign]
    assert Claims(raced, "b", lambda: storage.now_s).take([Numbered(0)]) is None  # type: ignore[arg-type]
    assert [name for name in storage.list("claims") if name.endswith("-b") and "now" not in name] == []


def test_the_record_is_readable_json(voices: Voices, tmp_path: Path) -> None:
    config = voices.config(tmp_path / "out")
    prepare(config, read_work_list(config), "a", lambda: None, lambda _done, _all: None)
    document = json.loads((tmp_path / "out/units" / records(tmp_path / "out")[0]).read_text(encoding="utf-8"))
    assert document["utterances"][0]["status"] == "ok"
    assert document["utterances"][0]["sample_rate"] == 16_000


def test_what_killed_workers_left_half_written_is_removed_when_it_is_old(voices: Voices, tmp_path: Path) -> None:
    config = voices.config(tmp_path / "out")
    work = read_work_list(config)
    prepare(config, work, "a", lambda: None, lambda _done, _all: None)
    old, young = (tmp_path / f"out/units/{TEMPORARY_PREFIX}{name}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"{")
    os.utime(old, (1, 1))
    prepare(config, work, "a", lambda: None, lambda _done, _all: None)
    assert (old.exists(), young.exists()) == (False, True)
