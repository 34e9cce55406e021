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

from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.demo.world import World
from indextts_job.storage.remote_storage import open_storage
from tests.distributed.ranks import KEYS, ended, pid_of_rank, same_samples, started, trained, weights
from tests.support.attempts import attempt
from tests.support.runs import config_for, events, newest, samples, store_of
from tests.support.servers import free_ports
from tests.support.waiting import wait_until
from tests.support.warm_parent import REPOSITORY


def stepped(count: int, folder: Path, precision: str = "float64", moments: str = "whole") -> dict[str, Any]:
    """Three steps on some ranks, in micro-batches of 100 tokens."""
    name = f"{count}-{precision}-{moments}"
    output = folder / f"{name}.pt"
    command = [sys.executable, "-m", "tests.distributed.worker", "step", "100", str(output), precision, moments]
    base = {**os.environ, "WORLD_SIZE": str(count), "INDEXTTS_RENDEZVOUS": f"file://{folder}/meet-{name}"}
    group = [
        subprocess.Popen(command, cwd=REPOSITORY, env={**base, "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"})
        for rank in range(count)
    ]
    assert [rank.wait(120) for rank in group] == [0] * count
    found: dict[str, Any] = torch.load(output, weights_only=False)
    return found


def test_the_update_does_not_know_how_many_ranks_there_are(tmp_path: Path) -> None:
    # With 4 ranks and this capacity there are more micro-batches than samples: some ranks have nothing to do.
    expected = stepped(1, tmp_path)
    for count in (2, 4):
        found = stepped(count, tmp_path)
        assert torch.allclose(found["weights"], expected["weights"], rtol=0, atol=1e-10)
        assert found["losses"].total == pytest.approx(expected["losses"].total, rel=1e-12)
        assert found["norm"] == pytest.approx(expected["norm"], rel=1e-10)
        assert found["samples"] == expected["samples"]


def test_sharing_the_moments_changes_no_bit(tmp_path: Path) -> None:
    # In float16, where the scaler too has to know the gradients of all of them.
    whole, shared = (stepped(3, tmp_path, "float16", moments) for moments in ("whole", "sharded"))
    assert torch.equal(whole["weights"], shared["weights"])
    assert whole["norm"] == shared["norm"]


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


def test_the_same_ranks_give_the_same_bits(world: World, tmp_path: Path) -> None:
    for name in ("one", "other"):
        code, output = ended(started(world, tmp_path / name, 2, recipe__dropout=0.1))
        assert code == 0, output
    assert torch.equal(weights(tmp_path / "one"), weights(tmp_path / "other"))


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
    assert "rank 0 of 2 lost the others" in output


def test_a_save_that_fails_on_one_rank_fails_on_all_and_is_made_up_for(world: World, tmp_path: Path) -> None:
    done = with_trouble(world, tmp_path / "run", "full-disk")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no space left, says the test. Training goes on" in done.stdout
    committed = [event["step"] for event in events(tmp_path / "run", "Committed")]
    assert 4 not in committed  # where the first save began
    assert committed[0] == 5
    store_of(tmp_path / "run").verify(newest(tmp_path / "run"))
