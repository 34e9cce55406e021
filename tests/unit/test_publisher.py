"""What follows the tensors of a save: the commit, a final one that must be whole, and the run tidied behind it."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from indextts_job.checkpoint import describe
from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.object_layout import drafts
from indextts_job.checkpoint.removal import collect_orphans
from indextts_job.checkpoint.retention import FINAL, KEEP, CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, CommitResult
from indextts_job.errors import DataError, SupersededError
from indextts_job.loop.publisher import CHECKPOINT_LOG, Publisher
from indextts_job.resume.shared_objects import Repaired
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import Carried, TrainState, build_optimizer, stored_base
from tests.support.models import small_model
from tests.support.stores import FaultyStorage, disk_full, reopened, save
from tests.support.values import values

START = 7


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(open_storage(str(tmp_path)))


@pytest.fixture(scope="module")
def state() -> TrainState:
    model = small_model()
    optimizer = build_optimizer(model, OptimizerConfig())
    return TrainState(model=model, optimizer=optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False), step=10)


def publisher_on(
    store: CheckpointStore,
    audit: Callable[[], Repaired] = Repaired,
    keep: int = 3,
    unreadable: tuple[CheckpointName, ...] = (),
    start: int = START,
) -> Publisher:
    fence = Fence(store.storage, AttemptRecord())
    return Publisher(
        store,
        fence,
        attempt_start=start,
        keep=keep,
        unreadable=unreadable,
        files={"tokenizer.model": b"pieces"},
        audit=audit,
    )


def published(publisher: Publisher, store: CheckpointStore, state: TrainState, *tags: str) -> CommitResult:
    publication = publisher.publication(state, tags, values(total_steps=99))
    return publisher.publish(publication, [store.write(drafts(state.tensor_groups()))])


class Audits:
    """Says `found`, and counts how often it was asked."""

    def __init__(self, *found: Repaired) -> None:
        self.found = list(found)
        self.asked = 0

    def __call__(self) -> Repaired:
        self.asked += 1
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]


def test_a_checkpoint_has_the_name_and_the_content_of_its_publication(
    store: CheckpointStore, state: TrainState
) -> None:
    Fence(store.storage, AttemptRecord())
    audit = Audits(Repaired())
    result = published(publisher_on(store, audit), store, state, "best")
    assert store.names() == [result.manifest.name] == [CheckpointName(10, 2, START, ("best",))]
    manifest = reopened(store).manifest(result.manifest.name)
    assert manifest == result.manifest
    assert manifest.values == values(total_steps=99)
    assert store.read_file(manifest, "tokenizer.model") == b"pieces"
    assert set(manifest.tensors) == {key for group in state.tensor_groups() for key in group}
    assert audit.asked == 0


def test_base_tensors_that_lie_in_the_run_are_named_again(store: CheckpointStore, state: TrainState) -> None:
    publisher = publisher_on(store)
    first = replace(state, carried=Carried(tensors={"conditioning_encoder.x": torch.ones(4)}))
    carried = stored_base(published(publisher, store, first).manifest)
    second = replace(state, step=11, carried=carried)
    publication = publisher.publication(second, (), values())
    second.carried = Carried()  # what was true when the save began counts
    manifest = publisher.publish(publication, [store.write(drafts(second.tensor_groups()))]).manifest
    assert manifest.tensors["base/conditioning_encoder.x"] == carried.stored["base/conditioning_encoder.x"]
    reopened(store).verify(manifest)
    assert torch.equal(store.load(manifest, ("base/",))["base/conditioning_encoder.x"], torch.ones(4))


def test_an_attempt_that_was_superseded_publishes_nothing(store: CheckpointStore, state: TrainState) -> None:
    publisher = publisher_on(store)
    Fence(store.storage, AttemptRecord())
    with pytest.raises(SupersededError):
        published(publisher, store, state)
    assert store.names() == []


def test_a_final_checkpoint_is_one_when_what_it_shares_is_whole(store: CheckpointStore, state: TrainState) -> None:
    audit = Audits(Repaired(told=("mended.",), whole=True))
    publisher = publisher_on(store, audit)
    assert published(publisher, store, state, "best", FINAL).manifest.name.tags == ("best", FINAL)
    assert publisher.warnings == ["mended."]
    assert audit.asked == 1


def test_a_final_checkpoint_that_cannot_be_exported_is_committed_as_an_ordinary_one(
    store: CheckpointStore, state: TrainState
) -> None:
    publisher = publisher_on(store, Audits(Repaired(told=("two files are gone.", "and one more."), whole=False)))
    with pytest.raises(DataError) as caught:
        published(publisher, store, state, "best", FINAL)
    assert str(caught.value) == (
        "two files are gone. The run is trained to its end, and its last step is committed without the tag final. "
        "Start it again when the files are there."
    )
    assert store.names() == [CheckpointName(10, 1, START, ("best",))]
    assert publisher.warnings == ["two files are gone.", "and one more."]


def test_old_checkpoints_go_and_those_that_could_not_be_read_stay(store: CheckpointStore, state: TrainState) -> None:
    names = [save(store, step) for step in range(1, 5)]
    publisher = publisher_on(store, keep=2, unreadable=(names[0],))
    result = published(publisher, store, state)
    assert publisher.tidy(result)
    assert store.names() == [names[0], names[3], result.manifest.name]
    assert not publisher.tidy(result)
    assert publisher.warnings == []


def test_the_summary_and_the_log_follow_every_commit(store: CheckpointStore, state: TrainState) -> None:
    publisher = publisher_on(store, keep=1)
    committed = []
    for step in (10, 11):
        result = published(publisher, store, replace(state, step=step), *((KEEP,) if step == 10 else ()))
        publisher.tidy(result)
        committed.append(result.manifest)
        summary = store.storage.read(describe.SUMMARY)
        assert json.loads(summary) == json.loads(json.dumps(describe.summary(store, {})))
        assert summary.startswith(b'{\n "')
    log = store.storage.read(CHECKPOINT_LOG)
    assert json.loads(log) == [describe.log_entry(manifest, store.storage.url) for manifest in committed]
    assert log.startswith(b'[\n {\n  "')
    assert json.loads(log)[0]["checkpoint_path"] == f"{store.storage.url}/checkpoints/{file_name(committed[0].name)}"


@pytest.mark.parametrize("damaged", [b"", b"null", b'{"step": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_log_begins_anew(store: CheckpointStore, state: TrainState, damaged: bytes) -> None:
    publisher = publisher_on(store)
    result = published(publisher, store, state)
    store.storage.write(CHECKPOINT_LOG, damaged)
    publisher.tidy(result)
    assert [entry["step"] for entry in json.loads(store.storage.read(CHECKPOINT_LOG))] == [10]
    assert publisher.warnings == []


def test_what_all_checkpoints_share_is_read_once_and_then_only_when_a_listing_misses_something(
    store: CheckpointStore, state: TrainState
) -> None:
    audit = Audits(Repaired(told=("a",)), Repaired(told=("a", "b")), Repaired(told=("b", "c")))
    publisher = publisher_on(store, audit)
    result = published(publisher, store, state)
    publisher.tidy(result)
    publisher.tidy(result)
    assert audit.asked == 1
    assert publisher.warnings == ["a"]
    store.storage.delete(result.manifest.files["tokenizer.model"])
    publisher.tidy(result)
    assert audit.asked == 2
    assert publisher.warnings == ["a", "b"]  # said once, however often it is found
    publisher.warnings.clear()
    publisher.tidy(result)
    assert publisher.warnings == ["c"]


def test_a_side_record_that_cannot_be_written_is_a_warning(tmp_path: Path, state: TrainState) -> None:
    def fault(_number: int, verb: str, key: str) -> None:
        if verb == "write" and key == describe.SUMMARY:
            raise disk_full()

    store = CheckpointStore(FaultyStorage(open_storage(str(tmp_path)), fault))
    save(store, 1)
    publisher = publisher_on(store, keep=1)
    assert publisher.tidy(published(publisher, store, state))
    assert publisher.warnings == [f"old checkpoints were not removed, or {describe.SUMMARY} not written: {disk_full()}"]


def test_checkpoints_that_cannot_be_removed_are_a_warning(tmp_path: Path, state: TrainState) -> None:
    def fault(_number: int, verb: str, _key: str) -> None:
        if verb == "delete":
            raise disk_full()

    store = CheckpointStore(FaultyStorage(open_storage(str(tmp_path)), fault))
    save(store, 1)
    publisher = publisher_on(store, keep=1)
    assert not publisher.tidy(published(publisher, store, state))
    (warning,) = publisher.warnings
    assert "were not removed" in warning


def _noted(asked: Counter[str], _number: int, verb: str, key: str) -> None:
    asked[f"{verb} {key.partition('/')[0]}"] += 1


@pytest.mark.parametrize("damaged", [False, True])
def test_a_save_reads_and_lists_as_much_with_many_checkpoints_as_with_few(
    tmp_path: Path, state: TrainState, *, damaged: bool
) -> None:
    """Besides the manifest that it removes: the first save of an attempt, too, behind the tidying at its start."""
    counts = []
    for kept in (3, 30):
        url = str(tmp_path / f"run-{kept}")
        earlier = CheckpointStore(open_storage(url))
        publisher = publisher_on(earlier, keep=kept, start=0)
        for step in range(1, kept + 1):
            publisher.tidy(published(publisher, earlier, replace(state, step=step)))
        asked: Counter[str] = Counter()
        storage = FaultyStorage(open_storage(url), partial(_noted, asked))
        if damaged:
            storage.write(describe.SUMMARY, b"[1]")
        store = CheckpointStore(storage)
        collect_orphans(store)
        following = publisher_on(store, keep=kept, start=kept)
        asked.clear()
        for step in (101, 102):
            following.tidy(published(following, store, replace(state, step=step)))
        counts.append({key: count for key, count in asked.items() if key.partition(" ")[0] in ("read", "list")})
    if damaged:  # the rows of the summary are made from the manifests, once
        assert counts[1]["read checkpoints"] - counts[0]["read checkpoints"] == 27
        counts = [{**count, "read checkpoints": 0} for count in counts]
    assert counts[0] == counts[1]
