"""Saves behind the training: copied before the state changes, cancelled between objects, errors handed over."""

import math
import threading
from pathlib import Path

import pytest
import torch

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.loop.background_saver import BackgroundSaver, SaveCancelledError
from indextts_job.loop.publisher import Publisher
from indextts_job.report.events import Committed, Event
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import Carried, TrainState, build_optimizer
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
    (committed,) = (event for event in events if isinstance(event, Committed))
    assert committed.stall_seconds <= committed.seconds
    # What never changes is in the run now, and not written a second time.
    assert not state.carried.tensors
    assert set(state.carried.stored) == {"base/conditioning_encoder.x"}


def test_what_is_committed_is_the_state_of_the_call_whenever_the_thread_comes_to_it(tmp_path: Path) -> None:
    """Held before it has looked at a single tensor: nothing is serialised when the next steps change everything."""
    held = Held(1, "list")
    saver, state = saver_on(FaultyStorage(open_storage(str(tmp_path)), held), []), new_state()
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
    with pytest.raises(RuntimeError, match="one save at a time"):
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


def test_staging_buffers_are_reused_and_never_alias_the_state(tmp_path: Path) -> None:
    events = list[Event]()
    saver, state = saver_on(open_storage(str(tmp_path)), events), new_state()
    saver.save(state, (), values())
    saver.finished(wait_s=math.inf)
    addresses = {key: buffer.data_ptr() for key, buffer in saver._copies._buffers.items()}
    assert not addresses.keys() & {"base/conditioning_encoder.x"}
    assert not set(addresses.values()) & {p.data_ptr() for p in state.model.parameters()}
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
    state.step = 5
    saver.save(state, (), values())
    saver.finished(wait_s=math.inf)
    assert {key: buffer.data_ptr() for key, buffer in saver._copies._buffers.items()} == addresses
    store = CheckpointStore(open_storage(str(tmp_path)))
    loaded = store.load(store.manifest(store.names()[-1]), ("model/",))
    assert all(torch.equal(loaded[f"model/{name}"], p.detach()) for name, p in state.model.named_parameters())
