"""Whole runs whose every input and output lies in a bucket: killed at random, fenced, told what is wrong."""

import json
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest

from indextts_job.cli import main
from indextts_job.config import RunConfig
from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from tests.s3.conftest import Connect
from tests.support.attempts import attempt
from tests.support.fault_proxy import proxy
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.servers import Server
from tests.support.warm_parent import Interruption, WarmParent, rounds

WANTED_INTERRUPTIONS = 30
WANTED_PLACES = ("SIGKILL PutObject", "SIGTERM PutObject", "SIGKILL training", "SIGTERM training")
LONGEST_LIFE = 160
"""Points that an attempt lives at most; a whole run has about 400."""


@pytest.fixture
def bucket_world(world: World, s3_run: str) -> str:
    """The dataset, uploaded."""
    url = f"{s3_run}-world"
    filesystem, root = fsspec.core.url_to_fs(url)
    for path in world.folder.rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{root}/{path.relative_to(world.folder)}", path.read_bytes())
    return url


def bucket_config(world: World, url: str, run: str, **keys: Any) -> RunConfig:
    return config_for(
        world,
        run,
        inputs__model_config=f"{url}/checkpoints/config.yaml",
        inputs__base_checkpoint=f"{url}/checkpoints/gpt.pth",
        inputs__tokenizer=f"{url}/tokenizers/extended_bpe.model",
        data__train_manifests=[f"{url}/processed/gpt_pairs_train.jsonl::am"],
        data__validation_manifests=[f"{url}/processed/gpt_pairs_val.jsonl"],
        storage__retry_seconds=60,
        **keys,
    )


def test_a_run_needs_no_disk_and_gives_the_same_bits(
    world: World, bucket_world: str, s3_run: str, tmp_path: Path
) -> None:
    local = tmp_path / "run"
    assert attempt(config_for(world, local)).code == EXIT_OK
    config = bucket_config(world, bucket_world, s3_run)
    ended = attempt(config)
    assert ended.code == EXIT_OK, ended.error
    assert state_of(newest(s3_run)) == state_of(newest(local))
    assert "complete at step 24" in attempt(config).output
    filesystem, root = fsspec.core.url_to_fs(s3_run)
    found = {path.removeprefix(f"{root}/").rpartition("/")[0] for path in filesystem.find(root)}
    summary = json.loads(filesystem.cat_file(f"{root}/summary.json"))
    assert (summary["step"], summary["complete"], summary["checkpoints"][0]["tags"][-1]) == (24, True, "final")
    assert found == {"", "attempts", "checkpoints", "data", "events", "logs/train", "objects", "samples", "shared"}
    filesystem.pipe_file(f"{root}-of-somebody-else/notes", b"mine")
    assert main(["checkpoints", "delete", s3_run, "--yes"]) == EXIT_OK
    assert not [path for path in filesystem.find(root) if path != root]  # some servers keep a folder, empty
    assert filesystem.cat_file(f"{root}-of-somebody-else/notes") == b"mine"


def test_interruptions_of_a_run_in_a_bucket_leave_no_trace(
    world: World, s3_run: str, tmp_path: Path, log: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert attempt(config_for(world, undisturbed)).code == EXIT_OK
    expected = state_of(newest(undisturbed))
    chance = random.Random(5)
    struck: Counter[str] = Counter()
    with WarmParent() as parent:  # of its own: it inherits this test's credentials
        for number in rounds(0):
            run = f"{s3_run}-chaos-{number}"
            for _ in rounds(0):
                which = chance.choice([signal.SIGKILL, signal.SIGTERM])
                grace = chance.choice([0, 3600])
                config = config_for(world, run, preemption__grace_seconds=grace, storage__retry_seconds=60)
                ended = parent.attempt(config, log, Interruption(which, chance.randint(1, LONGEST_LIFE)))
                struck[f"{signal.Signals(which).name} {ended.struck_at.partition(' ')[0]}"] += bool(ended.struck_at)
                assert ended.code in (EXIT_OK, EXIT_STOPPED, 128 + signal.SIGKILL), log.read_text()
                if ended.code == EXIT_OK:
                    break
            assert state_of(newest(run)) == expected
            best = [name.step for name in store_of(run).names() if "best" in name.tags]
            assert best[-1:] == [expected["history"]["best"]["step"]]
            if struck.total() >= WANTED_INTERRUPTIONS and all(struck[place] for place in WANTED_PLACES):
                break
    # The interruptions must have been where it hurts, or they prove little.
    assert all(struck[place] for place in WANTED_PLACES), struck


def test_a_zombie_that_wakes_up_after_its_successor_commits_nothing(world: World, s3_run: str) -> None:
    from indextts_job.checkpoint.attempt_record import AttemptRecord
    from indextts_job.checkpoint.fence import Fence
    from indextts_job.checkpoint.retention import CheckpointName
    from indextts_job.errors import SupersededError
    from indextts_job.storage.remote_storage import open_storage
    from tests.support.stores import content

    zombie = Fence(open_storage(s3_run), AttemptRecord(node="asleep"))
    assert attempt(config_for(world, s3_run)).code == EXIT_OK
    before = store_of(s3_run).names()
    expected = state_of(newest(s3_run))
    with pytest.raises(SupersededError):
        store_of(s3_run).commit(CheckpointName(23, zombie.attempt, 0), content(1), zombie.check)
    assert store_of(s3_run).names() == before
    # On a store without conditions its manifest could slip through: it is superseded all the same.
    store_of(s3_run).commit(CheckpointName(99, zombie.attempt, 0), content(1), lambda: None)
    assert state_of(newest(s3_run)) == expected


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [("AWS_SECRET_ACCESS_KEY", "wrong", 77), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", 69)],
)
def test_what_is_wrong_with_the_bucket_is_said_with_its_code(
    world: World, s3_run: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: int
) -> None:
    monkeypatch.setenv(variable, value)
    ended = attempt(config_for(world, s3_run))
    assert ended.code == code
    assert s3_run in ended.error


def test_the_server_may_die_and_come_back_under_a_running_job(
    world: World, s3_run: str, seaweed: Server, tmp_path: Path
) -> None:
    import threading

    local = tmp_path / "run"
    keys = {"schedule__max_steps": 200, "checkpoint__interval_steps": 10}
    assert attempt(config_for(world, local, **keys)).code == EXIT_OK
    committed = threading.Event()

    def bounce() -> None:
        committed.wait(60)
        seaweed.kill()
        seaweed.start()

    bouncer = threading.Thread(target=bounce)
    bouncer.start()
    ended = _attempt_watched(bucket_free_config(world, s3_run, **keys), committed)
    bouncer.join()
    assert ended == EXIT_OK
    assert state_of(newest(s3_run)) == state_of(newest(local))


def bucket_free_config(world: World, run: str, **keys: Any) -> RunConfig:
    return config_for(world, run, storage__retry_seconds=60, **keys)


def _attempt_watched(config: RunConfig, committed: Any) -> int:
    """An attempt that says when its first checkpoint is visible."""
    import io

    from indextts_job.attempt.run import run_attempt
    from indextts_job.preemption.signals import StopSignals
    from indextts_job.report.console import ConsoleReport
    from indextts_job.report.events import Committed, Event

    class Watching(ConsoleReport):
        def __call__(self, event: Event) -> None:
            if isinstance(event, Committed):
                committed.set()

    with Watching(io.StringIO()) as console:
        return run_attempt(config, StopSignals(), console)


def test_a_bucket_that_forbids_deletion_costs_space_and_a_warning(
    world: World, s3_run: str, seaweed: Server, connect: Connect
) -> None:
    refuse = {"DELETE": "denied"}
    with proxy(seaweed.port, lambda _number, method, _path: refuse.get(method, "")) as (url, faults):
        connect(url)
        ended = attempt(config_for(world, s3_run))
    assert ended.code == EXIT_OK, ended.error
    assert faults
    connect(seaweed.url)
    assert "old checkpoints were not removed" in ended.output
    store_of(s3_run).verify(newest(s3_run))


def test_a_prefix_that_holds_another_run_is_refused_and_left_alone(world: World, s3_run: str) -> None:
    assert attempt(config_for(world, s3_run, report__run_name="amharic-7")).code == EXIT_OK
    before = store_of(s3_run).names()
    other = attempt(config_for(world, s3_run, data__train_manifests=[str(world.validation_manifest)]))
    assert other.code == 65
    assert s3_run in other.error
    assert "amharic-7" in other.error
    assert store_of(s3_run).names() == before


def test_a_missing_shard_is_said_before_training(world: World, s3_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokenizer", str(world.tokenizer), "--config", str(world.model_config)]
    assert main(["shard", str(world.train_manifest), "--output", f"{s3_run}-shards", *arguments]) == EXIT_OK
    assert "40 samples" in capsys.readouterr().out
    filesystem, root = fsspec.core.url_to_fs(f"{s3_run}-shards")
    filesystem.rm_file(f"{root}/condition-00000.safetensors")
    ended = attempt(config_for(world, s3_run, data__train_manifests=[f"{s3_run}-shards"]))
    assert ended.code == 65
    assert "condition-00000.safetensors: missing" in ended.error
