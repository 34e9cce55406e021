"""A save that fails at any operation: the previous checkpoint stays loadable, nothing half-written is visible."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from indextts_job.checkpoint.removal import retain
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.demo.world import World
from indextts_job.storage.remote_storage import open_storage
from tests.support.attempts import attempt
from tests.support.faulty_filesystem import FaultyFileSystem, fresh_run
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.stores import FaultyStorage, content, disk_full, fresh_url, save


def operations_of_a_save(tmp_path: Path) -> int:
    storage = FaultyStorage(open_storage(fresh_url("file", tmp_path)), lambda _n, _verb, _key: None)
    store = CheckpointStore(storage)
    save(store, 1)
    before = storage.operations
    save(store, 2)
    retain(store, 1)
    return storage.operations - before


class _FaultFrom:
    """Fails the `at`-th operation after it was armed, and all later ones if `dead`."""

    def __init__(self, at: int, *, dead: bool) -> None:
        self.armed = False
        self._left = at
        self._dead = dead

    def __call__(self, _number: int, _verb: str, _key: str) -> None:
        if self.armed:
            self._left -= 1
            if self._left == -1 or (self._dead and self._left < 0):
                raise disk_full()


def _save_and_retain(store: CheckpointStore) -> None:
    store.commit(CheckpointName(2, 1, 0), content(2), lambda: None)
    retain(store, 1)


@pytest.mark.parametrize("dead", [False, True], ids=["one failure", "dead from there on"])
def test_failing_at_every_operation_keeps_a_whole_newest_checkpoint(tmp_path: Path, *, dead: bool) -> None:
    operations = operations_of_a_save(tmp_path)
    assert operations > 8
    for at in range(operations):
        url = fresh_url("file", tmp_path)
        fault = _FaultFrom(at, dead=dead)
        store = CheckpointStore(FaultyStorage(open_storage(url), fault))
        save(store, 1)
        fault.armed = True
        with pytest.raises(OSError, match="No space left"):
            _save_and_retain(store)
        after = CheckpointStore(open_storage(url))
        found = after.names()
        assert found
        assert {name.step for name in found} <= {1, 2}
        for name in found:
            expected = {key: tensor for group in content(name.step).groups for key, tensor in group.items()}
            loaded = after.load(after.manifest(name))
            assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


Fault = Callable[[str, str], None]
Arm = Callable[[Fault], None]


@pytest.fixture
def fault() -> Iterator[Arm]:
    def arm(function: Fault) -> None:
        FaultyFileSystem.fault = staticmethod(function)

    yield arm
    FaultyFileSystem.fault = staticmethod(lambda _verb, _path: None)


def test_one_failed_save_is_survived_and_leaves_no_trace(world: World, tmp_path: Path, fault: Arm) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert attempt(config_for(world, undisturbed)).code == 0
    run = fresh_run()
    failures = 0

    def disk_full_once(verb: str, path: str) -> None:
        nonlocal failures
        if verb == "write" and "checkpoints/step-00000008" in path and not failures:
            failures += 1
            raise disk_full()

    fault(disk_full_once)
    ended = attempt(config_for(world, run))
    assert ended.code == 0
    assert failures == 1
    assert "no space is left" in ended.output
    assert "Training goes on" in ended.output
    assert state_of(newest(run)) == state_of(newest(undisturbed))


def test_a_full_disk_stops_cleanly_and_keeps_the_previous_checkpoint(world: World, fault: Arm) -> None:
    run = fresh_run()
    full = False

    def disk_full_from_step_8(verb: str, path: str) -> None:
        nonlocal full
        full = full or "step-00000008" in path
        if verb == "write" and full:
            raise disk_full()

    fault(disk_full_from_step_8)
    ended = attempt(config_for(world, run))
    assert ended.code == 69
    assert "no space is left" in ended.error
    fault(lambda _verb, _path: None)
    assert newest(run).name.step == 5
    store_of(run).verify(newest(run))
    assert attempt(config_for(world, run)).code == 0


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), PermissionError(13, "Access Denied")])
def test_a_checkpoint_that_cannot_be_deleted_does_not_stop_the_run(world: World, fault: Arm, error: OSError) -> None:
    run = fresh_run()

    def no_deletions(verb: str, _path: str) -> None:
        if verb == "delete":
            raise error

    fault(no_deletions)
    ended = attempt(config_for(world, run))
    assert ended.code == 0
    assert "old checkpoints were not removed" in ended.output
