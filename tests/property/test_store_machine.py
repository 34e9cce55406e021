"""A run's store under any sequence of saves, deaths, damage and retention: what it offers is whole and newest."""

import shutil
import tempfile

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.removal import retain
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.storage.remote_storage import open_storage
from tests.support.stores import FaultyStorage, content, disk_full


class StoreMachine(RuleBasedStateMachine):
    """One run, lived by attempts that start, save, die at any operation, and start again."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="store-")
        self.committed: dict[CheckpointName, int] = {}
        self.damaged: set[str] = set()
        self.start_attempt()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def start_attempt(self) -> None:
        storage = open_storage(self.folder)
        self.store = CheckpointStore(storage)
        self.fence = Fence(storage, AttemptRecord())
        names = [name for name in retention.current(self.store.names()) if self.is_whole(name)]
        self.step = self.start = names[0].step if names else 0

    def is_whole(self, name: CheckpointName) -> bool:
        try:
            self.store.verify(self.store.manifest(name))
        except DamagedCheckpointError:
            return False
        return True

    @rule(steps=st.integers(1, 3), seed=st.integers(0, 3), keep=st.integers(1, 3), best=st.booleans())
    def save(self, steps: int, seed: int, keep: int, best: bool) -> None:
        self.step += steps
        name = CheckpointName(self.step, self.fence.attempt, self.start, ("best",) if best else ())
        self.store.commit(name, content(seed), self.fence.check)
        self.committed[name] = seed
        for gone in retain(self.store, keep):
            del self.committed[gone]

    @rule(at=st.integers(0, 12), seed=st.integers(4, 7))
    def die_while_saving(self, at: int, seed: int) -> None:
        def fault(number: int, _verb: str, _key: str) -> None:
            if number >= at:
                raise disk_full()

        dying = CheckpointStore(FaultyStorage(open_storage(self.folder), fault))
        name = CheckpointName(self.step + 1, self.fence.attempt, self.start)
        try:
            dying.commit(name, content(seed), self.fence.check)
            self.committed[name] = seed
            for gone in retain(dying, 2):
                del self.committed[gone]
        except OSError:
            for gone in set(self.committed) - set(self.store.names()):
                del self.committed[gone]
        self.start_attempt()

    @rule()
    def restart(self) -> None:
        self.start_attempt()

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def damage_an_object_of_the_newest(self, data: st.DataObject) -> None:
        newest = max(self.committed)
        key = data.draw(st.sampled_from(sorted(self.store.manifest(newest).objects)))
        self.store.storage.write(key, b"damaged")
        self.damaged.add(key)

    @invariant()
    def what_is_visible_was_committed(self) -> None:
        assert set(self.store.names()) == set(self.committed)

    @invariant()
    def every_checkpoint_is_whole_or_known_as_damaged(self) -> None:
        for name, seed in self.committed.items():
            manifest = self.store.manifest(name)
            expected = {key: tensor for group in content(seed).groups for key, tensor in group.items()}
            try:
                loaded = CheckpointStore(self.store.storage).load(manifest)
            except DamagedCheckpointError:
                assert self.damaged & manifest.objects.keys()
            else:
                assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestStoreMachine = StoreMachine.TestCase
