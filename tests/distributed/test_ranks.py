"""Several processes train one run: the same samples, the same mathematics, one stop, one checkpoint."""

import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from indextts_job.attempt.run import _agreed
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.demo.world import World
from indextts_job.resume.points import read
from indextts_job.resume.select import Selection
from indextts_job.storage.remote_storage import open_storage
from tests.distributed.ranks import KEYS, ended, pid_of_rank, same_samples, started, trained, weights
from tests.support.attempts import attempt
from tests.support.lockstep import on_ranks
from tests.support.runs import config_for, events, newest, samples, state_of, store_of
from tests.support.servers import free_ports
from tests.support.stores import save
from tests.support.waiting import wait_until
from tests.support.warm_parent import REPOSITORY

Found = dict[tuple[str, str], dict[str, Any]]
"""What three steps gave, by precision and by whether moments were whole or sharded."""


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Found]:
    """Three steps on 1 to 4 ranks, in micro-batches of 100 tokens.

    With 4 ranks there are more micro-batches than samples: some ranks have nothing to do.
    """
    folder = tmp_path_factory.mktemp("steps")
    return {count: _stepped(count, folder) for count in (1, 2, 3, 4)}


def _stepped(count: int, folder: Path) -> Found:
    output = folder / f"{count}.pt"
    command = [sys.executable, "-m", "tests.distributed.worker", "step", "100", str(output)]
    base = {**os.environ, "WORLD_SIZE": str(count), "INDEXTTS_RENDEZVOUS": f"file://{folder}/meet-{count}"}
    group = [
        subprocess.Popen(command, cwd=REPOSITORY, env={**base, "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"})
        for rank in range(count)
    ]
    assert [rank.wait(120) for rank in group] == [0] * count
    found: Found = torch.load(output, weights_only=False)
    return found


@pytest.mark.parametrize("moments", ["whole", "sharded"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_update_does_not_know_how_many_ranks_there_are(stepped: dict[int, Found], count: int, moments: str) -> None:
    found, expected = stepped[count]["float64", moments], stepped[1]["float64", "whole"]
    assert torch.allclose(found["weights"], expected["weights"], rtol=0, atol=1e-10)
    assert found["losses"].total == pytest.approx(expected["losses"].total, rel=1e-12)
    assert found["norm"] == pytest.approx(expected["norm"], rel=1e-10)
    assert found["samples"] == expected["samples"]


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_gradient_does_not_know_how_many_ranks_there_are(
    stepped: dict[int, Found], count: int, precision: str, tolerance: float
) -> None:
    found, expected = (stepped[number][precision, "whole"]["gradient"] for number in (count, 1))
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def test_sharing_the_moments_of_two_ranks_changes_no_bit(stepped: dict[int, Found]) -> None:
    # In float16 too, where the scaler has to know the gradients of all of them.
    for precision in ("float64", "float32", "float16"):
        whole, sharded = (stepped[2][precision, moments] for moments in ("whole", "sharded"))
        assert torch.equal(whole["weights"], sharded["weights"])
        assert whole["norm"] == sharded["norm"]


def test_moments_are_shared_or_not_at_every_start(world: World, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(world, run, 3, hardware__shard_optimizer="always", checkpoint__interval_steps=6)
    wait_until(lambda: trained(run, 1), "some steps")
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == 75, output
    assert "moments shared among the processes" in output
    CheckpointStore(open_storage(str(run))).verify(newest(run))
    assert ended(started(world, run, 2))[0] == 0
    assert same_samples(run, undisturbed)
    assert torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)


def test_a_run_on_three_ranks_is_the_run_on_one(world: World, undisturbed: Path, tmp_path: Path) -> None:
    code, output = ended(started(world, tmp_path / "run", 3))
    assert code == 0, output
    assert output.count("complete at step") == 1  # rank 0 speaks
    assert same_samples(tmp_path / "run", undisturbed)
    assert torch.allclose(weights(tmp_path / "run"), weights(undisturbed), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("count", "moments", "kind"),
    [(2, "never", signal.SIGTERM), (3, "always", signal.SIGKILL), (4, "never", signal.SIGKILL)],
)
def test_ranks_that_were_interrupted_give_the_same_bits(
    world: World, tmp_path: Path, count: int, moments: str, kind: signal.Signals
) -> None:
    def ranks(run: Path) -> "subprocess.Popen[str]":
        keys: dict[str, object] = {"recipe__dropout": 0.1, "hardware__shard_optimizer": moments}
        return started(world, run, count, None, checkpoint__interval_steps=5, **keys)

    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    code, output = ended(ranks(undisturbed))
    assert code == 0, output
    process = ranks(run)
    wait_until(lambda: trained(run, 1), "some steps")
    os.kill(pid_of_rank(process, count - 1), kind)
    assert ended(process)[0] == (75 if kind == signal.SIGTERM else 137)
    assert ended(ranks(run))[0] == 0
    assert state_of(newest(run)) == state_of(newest(undisturbed))


def test_a_preempted_rank_stops_all_at_one_step_with_one_checkpoint(
    world: World, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(world, run, 3, checkpoint__interval_steps=0)
    wait_until(lambda: trained(run, 1), "some steps")
    os.kill(pid_of_rank(process, 2), signal.SIGTERM)
    code, output = ended(process)
    assert code == 75, output
    assert "SIGTERM" in output
    assert newest(run).name.step == max(samples(run))
    assert ended(started(world, run, 2))[0] == 0
    assert same_samples(run, undisturbed)
    assert torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)


def test_a_killed_rank_ends_the_others_and_names_itself(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(world, run, 2)
    wait_until(lambda: trained(run, 1), "some steps")
    os.kill(pid_of_rank(process, 1), signal.SIGKILL)
    code, output = ended(process)
    assert code == 137, output
    assert "rank 1 of 2: it ended with exit code 137" in output


def test_world_sizes_change_at_random_kills(world: World, undisturbed: Path, tmp_path: Path) -> None:
    chance, run = random.Random(5), tmp_path / "run"
    lives = ((3, signal.SIGKILL), (1, signal.SIGTERM), (4, signal.SIGTERM), (2, signal.SIGKILL))
    for number, (count, kind) in enumerate(lives, start=1):
        process = started(world, run, count)
        wait_until(partial(trained, run, number), "some steps")
        os.kill(process.pid if count == 1 else pid_of_rank(process, chance.randrange(count)), kind)
        assert ended(process)[0] == (75 if kind == signal.SIGTERM else 137)
    assert attempt(config_for(world, run, **KEYS)).code == 0
    assert same_samples(run, undisturbed)
    assert torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)


def with_trouble(world: World, run: Path, *trouble: str) -> "subprocess.CompletedProcess[str]":
    """Train on two ranks, of which the second meets some trouble (`worker.py`)."""
    config = run.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(config_for(world, run, **KEYS).to_json()), encoding="utf-8")
    command = [sys.executable, "-m", "tests.distributed.worker", trouble[0], "1", str(config), *trouble[1:]]
    script = f"from indextts_job.attempt.processes import ProcessesOfNode\nexit(ProcessesOfNode({command}, 2).run())"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)


def test_one_rank_s_memory_is_everybody_s(world: World, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = with_trouble(world, run, "out-of-memory", "forward")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ran out of memory with micro-batches of up to 200 tokens" in done.stdout
    assert same_samples(run, undisturbed)
    assert torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)


def test_a_rank_that_fails_in_its_update_does_not_go_back_alone(world: World, tmp_path: Path) -> None:
    done = with_trouble(world, tmp_path / "run", "out-of-memory", "update")
    assert done.returncode == 70, done.stdout + done.stderr
    assert "error: rank 1 of 2: rank 1 ran out of memory in the update" in done.stderr


def test_a_lost_node_ends_the_other(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (port,) = free_ports(1)
    common = {"INDEXTTS_NODES": "2", "INDEXTTS_MEETING": f"127.0.0.1:{port}", "GLOO_SOCKET_IFNAME": "lo"}
    first, second = (started(world, run, 1, {**common, "INDEXTTS_NODE_INDEX": str(index)}) for index in range(2))
    wait_until(lambda: trained(run, 1), "some steps")
    os.kill(pid_of_rank(second, 1), signal.SIGKILL)
    assert ended(second)[0] == 137
    code, output = ended(first)
    assert code == 69, output
    assert "rank 0 of 2 lost rank 1: " in output


def test_a_save_that_fails_on_one_rank_fails_on_all_and_is_made_up_for(world: World, tmp_path: Path) -> None:
    done = with_trouble(world, tmp_path / "run", "full-disk")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no space left, says the test. Training goes on" in done.stdout
    committed = [event["step"] for event in events(tmp_path / "run", "Committed")]
    assert 4 not in committed  # where the first save began
    assert committed[0] == 5
    store_of(tmp_path / "run").verify(newest(tmp_path / "run"))


def test_ranks_agree_on_a_checkpoint_that_only_one_of_them_can_read(tmp_path: Path) -> None:
    """A node may have copies of what is damaged in the bucket: the others pass over it, and it goes along."""
    store = CheckpointStore(open_storage(str(tmp_path)))
    names = [save(store, step) for step in (1, 2)]
    points = {name: read(store, name) for name in names}

    def agreed(group: Any, name: CheckpointName) -> Selection:
        return _agreed(group, Selection(point=points[name]), store, lambda selection: selection)

    found = on_ranks(2, lambda group: agreed(group, names[1 - group.rank]))
    assert [one.point and one.point.name for one in found] == [names[0]] * 2
    found = on_ranks(2, lambda group: agreed(group, names[1]))
    assert [one.point and one.point.name for one in found] == [names[1]] * 2
