"""Saves behind the training: copied before the state changes, cancelled between objects, errors handed over."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.object_layout import drafts
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.values import ReferenceLosses
from indextts_job.errors import DataError, IndexTTSJobError, UnavailableError
from indextts_job.hashing import Buffer, integrity_hash
from indextts_job.loop.background_saver import BackgroundSaver, FinishedSave, SaveCancelledError
from indextts_job.loop.publisher import Publisher
from indextts_job.report.events import Committed, Event, Notice
from indextts_job.resume.reference import Later
from indextts_job.resume.shared_objects import Repaired
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import Carried, TrainState, build_optimizer
from tests.support.lockstep import side_by_side
from tests.support.models import small_model
from tests.support.stores import FaultyStorage, disk_full
from tests.support.values import values


class Held:
    """Stops a storage before the n-th operation of a kind on its objects until it is let go."""

    def __init__(self, at: int, verb: str = "write") -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._left, self._verb = at, verb

    def __call__(self, _number: int, verb: str, key: str) -> None:
        if verb == self._verb and key.startswith("objects"):
            self._left -= 1
            if self._left == 0:
                self.reached.set()
                assert self.go.wait(30)


class HeldHash(Held):
    """Stops before the first byte of a save is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(1)
        monkeypatch.setattr("indextts_job.checkpoint.objects.integrity_hash", self._hashed)

    def _hashed(self, content: Buffer) -> str:
        self.reached.set()
        assert self.go.wait(30)
        return integrity_hash(content)


def saver_on(storage: RunStorage, events: list[Event]) -> BackgroundSaver:
    store = CheckpointStore(storage)
    publisher = Publisher(
        store, Fence(storage, AttemptRecord()), attempt_start=0, keep=3, files={"tokenizer.model": b"pieces"}
    )
    return BackgroundSaver(store, publisher, SingleProcess(), events.append)


def new_state(step: int = 4) -> TrainState:
    model = small_model()
    optimizer = build_optimizer(model, OptimizerConfig())
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = TrainState(model=model, optimizer=optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False), step=step)
    state.carried = Carried(tensors={"conditioning_encoder.x": torch.ones(4)})
    return state


def test_the_state_may_change_while_it_is_written(tmp_path: Path) -> None:
    held, events = Held(1), list[Event]()
    storage = FaultyStorage(open_storage(str(tmp_path)), held)
    saver, state = saver_on(storage, events), new_state()
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    saver.save(state, (), values())
    assert held.reached.wait(30)
    assert saver.finished(wait_s=0) is None
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "save")
    assert thread.daemon  # a storage that hangs does not keep the process
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.zero_()
    held.go.set()
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert finished.error is None
    store = CheckpointStore(open_storage(str(tmp_path)))
    loaded = store.load(store.manifest(store.names()[0]), ("model/",))
    assert all(torch.equal(loaded[f"model/{name}"], value) for name, value in before.items())
    assert [event for event in events if isinstance(event, Committed)]
    # What never changes is in the run now, and not written a second time.
    assert not state.carried.tensors
    assert set(state.carried.stored) == {"base/conditioning_encoder.x"}


def test_what_is_committed_is_the_state_of_the_call_whenever_the_thread_comes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held before it has looked at a single byte, while the next steps change everything."""
    held = HeldHash(monkeypatch)
    saver, state = saver_on(open_storage(str(tmp_path)), []), new_state()
    for moments in state.optimizer.state.values():
        moments["exp_avg"].uniform_()
        moments["exp_avg_sq"].uniform_()
    expected = {key: tensor.clone() for group in state.tensor_groups() for key, tensor in group.items()}
    saver.save(state, (), values())
    assert held.reached.wait(30)
    assert not open_storage(str(tmp_path)).list("objects")
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
            for moment in ("exp_avg", "exp_avg_sq"):
                state.optimizer.state[parameter][moment].mul_(2)
    held.go.set()
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert finished.error is None
    store = CheckpointStore(open_storage(str(tmp_path)))
    loaded = store.load(store.manifest(store.names()[0]))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_a_cancelled_save_leaves_no_checkpoint_and_its_objects_to_the_next(tmp_path: Path) -> None:
    held, events = Held(1), list[Event]()
    storage = FaultyStorage(open_storage(str(tmp_path)), held)
    saver, state = saver_on(storage, events), new_state()
    saver.save(state, (), values())
    assert held.reached.wait(30)
    saver.cancel()
    held.go.set()
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert isinstance(finished.error, SaveCancelledError)
    assert CheckpointStore(open_storage(str(tmp_path))).names() == []
    written = set(open_storage(str(tmp_path)).list("objects"))
    saver.save(state, ("preempted",), values())
    assert saver.finished(wait_s=math.inf) is not None
    store = CheckpointStore(open_storage(str(tmp_path)))
    manifest = store.manifest(store.names()[0])
    store.verify(manifest)
    assert {f"objects/{name}" for name in written} <= manifest.objects.keys()


def test_one_save_at_a_time(tmp_path: Path) -> None:
    held, events = Held(1), list[Event]()
    saver, state = saver_on(FaultyStorage(open_storage(str(tmp_path)), held), events), new_state()
    saver.save(state, (), values())
    with pytest.raises(RuntimeError, match=r"^one save at a time$"):
        saver.save(state, (), values())
    held.go.set()
    saver.finished(wait_s=math.inf)
    assert saver.finished(wait_s=math.inf) is None


def test_an_error_of_the_thread_is_handed_to_the_training(tmp_path: Path) -> None:
    def fail(_number: int, verb: str, key: str) -> None:
        if verb == "write" and key.startswith("checkpoints/"):
            raise disk_full()

    events = list[Event]()
    saver = saver_on(FaultyStorage(open_storage(str(tmp_path)), fail), events)
    saver.save(new_state(), (), values())
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert isinstance(finished.error, OSError)
    assert not events


def test_a_save_holds_the_state_of_its_call_whatever_the_training_does_meanwhile(tmp_path: Path) -> None:
    held, events = Held(1), list[Event]()
    saver, state = saver_on(FaultyStorage(open_storage(str(tmp_path)), held), events), new_state()
    for step in (4, 5):
        state.step = step
        before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
        saver.save(state, (), values())
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.add_(1)
        held.go.set()
        saver.finished(wait_s=math.inf)
        store = CheckpointStore(open_storage(str(tmp_path)))
        loaded = store.load(store.manifest(store.names()[-1]), ("model/",))
        assert all(torch.equal(loaded[f"model/{name}"], value) for name, value in before.items())


def test_the_event_of_a_commit_tells_what_was_done_and_how_long_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The training: begun, copied; waits for the end of it, has waited. The thread: visible.
    training, thread = iter([100.0, 100.25, 101.0, 104.0]), iter([103.0])
    held, events = Held(1), list[Event]()
    saver, state = saver_on(FaultyStorage(open_storage(str(tmp_path)), held), events), new_state()
    clock = SimpleNamespace(monotonic=lambda: next(thread if threading.current_thread().name == "save" else training))
    monkeypatch.setattr("indextts_job.loop.background_saver.time", clock)
    saver.save(state, ("best", "keep"), values())
    held.go.set()
    finished = saver.finished(wait_s=math.inf)
    assert finished == FinishedSave(seconds=3.0, stall_s=3.25, error=None)
    store = CheckpointStore(open_storage(str(tmp_path)))
    manifest = store.manifest(store.names()[0])
    document = open_storage(str(tmp_path)).read(f"checkpoints/{file_name(manifest.name)}")
    assert events == [
        Committed(
            step=4,
            name="step-00000004-attempt-0001-from-00000000-best-keep.json",
            tags=("best", "keep"),
            bytes_written=manifest.size_bytes + len(document),
            bytes_total=manifest.size_bytes,
            seconds=3.0,
            stall_seconds=3.25,
        )
    ]


def test_a_save_records_the_losses_of_its_call_and_waits_for_them_before_it_commits(tmp_path: Path) -> None:
    storage, asked = open_storage(str(tmp_path)), []
    losses = ReferenceLosses(samples=("a",), text_loss=1.0, mel_loss=2.0, precision="float32", device="cpu")

    def later() -> ReferenceLosses:
        assert not storage.list("checkpoints")
        return losses

    def reference(copies: Mapping[str, Tensor]) -> Later:
        asked.append({name: tensor.clone() for name, tensor in copies.items()})
        return later

    store, state = CheckpointStore(storage), new_state()
    publisher = Publisher(store, Fence(storage, AttemptRecord()), attempt_start=0, keep=3, files={})
    saver = BackgroundSaver(store, publisher, SingleProcess(), reference=reference)
    saver.save(state, (), values())
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert finished.error is None
    manifest = store.manifest(store.names()[0])
    assert manifest.values.reference == losses
    loaded = store.load(manifest, ("model/", "exp_avg"))
    assert asked[0].keys() == loaded.keys()
    assert all(torch.equal(asked[0][name], tensor) for name, tensor in loaded.items())


def test_warnings_of_the_thread_become_events_of_the_training_in_their_order(tmp_path: Path) -> None:
    events = list[Event]()
    storage = open_storage(str(tmp_path))
    store = CheckpointStore(storage)
    told = Repaired(told=("first", "second"))
    publisher = Publisher(store, Fence(storage, AttemptRecord()), attempt_start=0, keep=3, files={}, audit=lambda: told)
    saver = BackgroundSaver(store, publisher, SingleProcess(), events.append)
    saver.save(new_state(), (), values())
    assert saver.finished(wait_s=math.inf) is not None
    expected = [Notice(step=4, topic="checkpoint", message=text, warning=True) for text in ("first", "second")]
    assert [event for event in events if isinstance(event, Notice)] == expected
    assert not publisher.warnings
    saver.save(new_state(5), (), values())
    saver.finished(wait_s=math.inf)
    assert [event for event in events if isinstance(event, Notice)] == expected


def test_without_values_nothing_is_published(tmp_path: Path) -> None:
    events = list[Event]()
    saver = saver_on(open_storage(str(tmp_path)), events)
    saver.save(new_state(), (), None)
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert finished.error is None
    assert not events
    assert CheckpointStore(open_storage(str(tmp_path))).names() == []


def test_an_error_is_that_of_its_own_save_and_of_no_later_one(tmp_path: Path) -> None:
    fails = [True]

    def fail(_number: int, verb: str, key: str) -> None:
        if verb == "write" and key.startswith("checkpoints/") and fails:
            raise disk_full()

    events = list[Event]()
    saver, state = saver_on(FaultyStorage(open_storage(str(tmp_path)), fail), events), new_state()
    saver.save(state, (), values())
    first = saver.finished(wait_s=math.inf)
    assert first is not None
    assert isinstance(first.error, OSError)
    assert state.carried.tensors  # not stored yet: the next save has to write them
    fails.clear()
    saver.save(state, (), values())
    second = saver.finished(wait_s=math.inf)
    assert second is not None
    assert second.error is None
    fails.append(True)
    saver.save(new_state(5), (), values())
    third = saver.finished(wait_s=math.inf)
    assert third is not None
    assert isinstance(third.error, OSError)
    assert len([event for event in events if isinstance(event, Committed)]) == 1


def test_a_cancelled_save_says_why(tmp_path: Path) -> None:
    held = Held(1)
    saver = saver_on(FaultyStorage(open_storage(str(tmp_path)), held), [])
    saver.save(new_state(), (), values())
    assert held.reached.wait(30)
    saver.cancel()
    held.go.set()
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert str(finished.error) == "the save was given up for a newer state."
    assert not open_storage(str(tmp_path)).list("checkpoints")


class HeldBehindTheCommit:
    """Stops a storage when the run is tidied, which begins with a list of manifests behind the commit."""

    def __init__(self) -> None:
        self.reached, self.go, self.next_save = threading.Event(), threading.Event(), threading.Event()
        self.committed = False
        self.early = False
        """Whether the next save began to write before the tidying was done."""

    def __call__(self, _number: int, verb: str, key: str) -> None:
        if verb == "write" and key.startswith("checkpoints/"):
            self.committed = True
        elif self.committed and not self.reached.is_set():
            self.reached.set()
            self.early = self.next_save.wait(0.5)
            assert self.go.wait(30)
        elif self.reached.is_set() and verb == "list" and key == "objects":
            self.next_save.set()


def test_a_stop_does_not_wait_for_what_follows_a_commit_but_the_next_save_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indextts_job.loop.background_saver.TIDY_S", 0.0)
    held, events, stopping = HeldBehindTheCommit(), list[Event](), [False]
    storage = FaultyStorage(open_storage(str(tmp_path)), held)
    store = CheckpointStore(storage)
    publisher = Publisher(store, Fence(storage, AttemptRecord()), attempt_start=0, keep=1, files={})
    saver = BackgroundSaver(store, publisher, SingleProcess(), events.append, lambda: stopping[0])
    state = new_state()
    saver.save(state, (), values())
    assert held.reached.wait(30)
    assert saver.finished(wait_s=0.0) is None  # nobody asked to stop, so the save is not done
    stopping[0] = True
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert finished.error is None
    assert [type(event) for event in events] == [Committed]
    assert saver.finished(wait_s=math.inf) is None
    state.step = 5
    second = threading.Thread(target=saver.save, args=(state, (), values()))
    second.start()
    held.go.set()
    second.join(30)
    assert not second.is_alive()
    assert saver.finished(wait_s=math.inf) is not None
    assert not held.early
    assert [name.step for name in store.names()] == [5]


def test_a_stop_waits_for_the_commit_itself(tmp_path: Path) -> None:
    held, events = Held(1), list[Event]()
    storage = FaultyStorage(open_storage(str(tmp_path)), held)
    store = CheckpointStore(storage)
    publisher = Publisher(store, Fence(storage, AttemptRecord()), attempt_start=0, keep=3, files={})
    saver = BackgroundSaver(store, publisher, SingleProcess(), events.append, lambda: True)
    saver.save(new_state(), (), values())
    assert held.reached.wait(30)
    assert saver.finished(wait_s=0.0) is None
    held.go.set()
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert [type(event) for event in events] == [Committed]


def two_savers(
    tmp_path: Path, faults: Sequence[Callable[[int, str, str], None]], keep: int = 3
) -> tuple[list[BackgroundSaver], list[TrainState]]:
    """Two ranks that share the tensors of one state."""
    savers, states = [], []
    for group, fault in zip(side_by_side(2), faults, strict=True):
        storage = FaultyStorage(open_storage(str(tmp_path)), fault)
        store = CheckpointStore(storage)
        publisher = None
        if group.rank == 0:
            fence = Fence(storage, AttemptRecord())
            publisher = Publisher(store, fence, attempt_start=0, keep=keep, files={})
        savers.append(BackgroundSaver(store, publisher, group))
        state = new_state()
        names = sorted(name for name, _ in state.model.named_parameters())
        state.own = names[group.rank :: 2]
        if group.rank:
            state.carried = Carried()
        states.append(state)
    return savers, states


def nothing(_number: int, _verb: str, _key: str) -> None:
    pass


def saved_by(savers: list[BackgroundSaver], states: list[TrainState], step: int) -> list[FinishedSave]:
    for rank, (saver, state) in enumerate(zip(savers, states, strict=True)):
        state.step = step
        saver.save(state, (), values() if rank == 0 else None)
    found = [saver.finished(wait_s=math.inf) for saver in savers]
    return [finished for finished in found if finished is not None]


def test_each_rank_writes_its_share_and_one_of_them_makes_a_checkpoint_of_all(tmp_path: Path) -> None:
    savers, states = two_savers(tmp_path, (nothing, nothing), keep=1)
    assert [finished.error for finished in saved_by(savers, states, 4)] == [None, None]
    store = CheckpointStore(open_storage(str(tmp_path)))
    (name,) = store.names()
    manifest = store.manifest(name)
    store.verify(manifest)
    assert {key for state in states for group in state.tensor_groups() for key in group} <= manifest.tensors.keys()
    before = [p.detach().clone() for p in states[1].model.parameters()]
    for step, change in ((5, 1.0), (6, -1.0)):
        # Rank 0 removes what only the older checkpoint names; when it comes back, its writer has to write it again.
        with torch.no_grad():
            for parameter, value in zip(states[1].model.parameters(), before, strict=True):
                parameter.copy_(value + 1 if change > 0 else value)
        assert [finished.error for finished in saved_by(savers, states, step)] == [None, None]
        (name,) = store.names()
        CheckpointStore(open_storage(str(tmp_path))).verify(store.manifest(name))


@pytest.mark.parametrize("error", [disk_full(), DataError("no good")])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_fails_on_all_ranks_when_it_fails_on_one(tmp_path: Path, failing: int, error: Exception) -> None:
    def fail(_number: int, verb: str, key: str) -> None:
        if verb == "write" and key.startswith("objects"):
            raise error

    faults = [fail if rank == failing else nothing for rank in range(2)]
    savers, states = two_savers(tmp_path, faults)
    errors = [finished.error for finished in saved_by(savers, states, 4)]
    assert errors[failing] is error
    other = errors[1 - failing]
    if isinstance(error, DataError):
        assert other is error
    else:
        assert type(other) is IndexTTSJobError
        assert str(other) == f"OSError: {error}"
    assert CheckpointStore(open_storage(str(tmp_path))).names() == []
    # Nobody waits for anybody any more: the next save works.
    assert len(saved_by(savers, states, 5)) == 2


class LostBehindTheCommit(SingleProcess):
    """The other ranks are gone when this one meets them for the third time in a save."""

    rank = 1
    meetings = 0

    def all_gather(self, value: object) -> list[Any]:
        self.meetings += 1
        if self.meetings == 3:
            raise UnavailableError("rank 1 of 2 lost the others")
        return [value]


def test_a_rank_that_is_left_alone_behind_a_commit_trusts_nothing_that_it_wrote(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)))
    saver = BackgroundSaver(store, None, LostBehindTheCommit())
    state = new_state()
    saver.save(state, (), None)
    finished = saver.finished(wait_s=math.inf)
    assert finished is not None
    assert finished.error is None  # the commit stands
    written = store.storage.list("objects")
    assert written
    # Rank 0 may have removed them and somebody else may have put anything there: they are written again.
    for file in written:
        store.storage.write(f"objects/{file}", bytes(written[file].size_bytes))
    store.write(drafts(state.tensor_groups()))
    assert all(any(store.storage.read(f"objects/{file}")) for file in written)


def test_what_retention_left_is_not_written_again(tmp_path: Path) -> None:
    events = list[Event]()
    storage = open_storage(str(tmp_path))
    store = CheckpointStore(storage)
    publisher = Publisher(store, Fence(storage, AttemptRecord()), attempt_start=0, keep=1, files={"a.txt": b"a"})
    saver, state = BackgroundSaver(store, publisher, SingleProcess(), events.append), new_state()
    for state.step in (4, 5, 6):
        saver.save(state, (), values())
        assert saver.finished(wait_s=math.inf) is not None
    (name,) = store.names()
    *_, last = (event for event in events if isinstance(event, Committed))
    assert last.bytes_written == len(storage.read(f"checkpoints/{file_name(name)}"))
