"""`slurm/train.sbatch` on a real cluster, with the real trainer: whatever happens, the run ends as if nothing had."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from indextts_job.demo.world import World
from indextts_job.report.attempts import attempts
from indextts_job.storage.remote_storage import open_storage
from tests.s3.conftest import Connect
from tests.slurm.cluster import KILL_WAIT_S, Cluster
from tests.support.attempts import attempt
from tests.support.fault_proxy import HeldLine, proxy
from tests.support.runs import config_for, curve, newest, samples, state_of, store_of
from tests.support.servers import Server
from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "slurm/train.sbatch"
WITHOUT_GPU = ("--gres=none", "--mem=1500", "--cpus-per-task=1")
SHORT = {"schedule__max_steps": 40, "checkpoint__interval_steps": 10}
LONG = {
    "schedule__epochs": 100_000,
    "schedule__max_steps": 5000,
    "checkpoint__interval_steps": 50,
    "validation__interval_steps": 500,
    "report__log_interval_steps": 100,
}


def write_config(desk: Path, world: World, run: Path | str, **keys: Any) -> Path:
    path = desk / "run.yaml"
    path.write_text(yaml.safe_dump(config_for(world, run, **keys).to_json()), encoding="utf-8")
    return path


def submit(cluster: Cluster, desk: Path, *options: str) -> str:
    """Queue the committed script from a user's desk; the number of the chain."""
    return cluster.call("sbatch", "--parsable", *WITHOUT_GPU, *options, str(SCRIPT), cwd=desk).strip()


def log_of(desk: Path, chain: str) -> str:
    return (desk / f"indextts-{chain}.log").read_text(encoding="utf-8")


def tasks(cluster: Cluster, chain: str) -> dict[str, str]:
    """State of every task of a chain that has started or may start, by its number."""
    shown = cluster.call("squeue", "--array", "-h", "-t", "all", "-o", "%F_%K %T", "-j", chain, check=False)
    return dict(line.split() for line in shown.splitlines())


def running_task(cluster: Cluster, chain: str) -> str:
    return next((task for task, state in tasks(cluster, chain).items() if state == "RUNNING"), "")


def over(cluster: Cluster, chain: str) -> bool:
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    return set(tasks(cluster, chain).values()) <= ended


def last_step(run: Path) -> int:
    names = store_of(run).names()
    return names[-1].step if names else 0


def trainers(desk: Path) -> list[int]:
    """Process ids of trainers that work on this desk's configuration."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            here = (folder / "cwd").resolve() == desk
        except OSError:
            continue
        if here and b"/indextts-job\0train\0" in command and b"srun" not in command:
            found.append(int(folder.name))
    return found


def progressed(cluster: Cluster, chain: str, run: Path, steps: int) -> Callable[[], bool]:
    """Whether a slice is running and has committed so many steps from here."""
    wanted = last_step(run) + steps
    return lambda: bool(running_task(cluster, chain)) and last_step(run) >= wanted


def test_a_chain_survives_everything_and_ends_with_the_same_bits(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path
) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    write_config(desk, world, run, **LONG)
    command = [sys.executable, "-m", "indextts_job", "train", str(desk / "run.yaml"), f"run={undisturbed}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as reference:
        chain = submit(cluster, desk)
        chance = random.Random(1)

        def preempted() -> None:
            other = cluster.occupy(desk)
            wait_until(lambda: cluster.state(other) == "RUNNING", "the job of higher priority runs")
            cluster.call("scancel", other)

        def timed_out() -> None:
            task = running_task(cluster, chain)
            cluster.call("scontrol", "update", f"JobId={task}", "TimeLimit=1")
            wait_until(lambda: running_task(cluster, chain) != task, "the time limit is noticed")

        def killed() -> None:
            (trainer,) = trainers(desk)
            os.kill(trainer, signal.SIGKILL)
            wait_until(lambda: "failure 1 in a row" in log_of(desk, chain), "the crash is noticed")

        def node_lost() -> None:
            cluster.lose_node()
            wait_until(lambda: not running_task(cluster, chain), "the controller gives the node up")
            assert trainers(desk), "the lost node goes on training: two writers, if nothing fenced it"
            cluster.start_node()

        for disturb in (preempted, killed, preempted, node_lost, preempted, timed_out):
            wait_until(progressed(cluster, chain, run, 50 * chance.randint(1, 4)), "progress")
            disturb()
        wait_until(lambda: over(cluster, chain), "the chain is over", 300)
    assert reference.returncode == 0
    log = log_of(desk, chain)
    states = tasks(cluster, chain)
    assert "COMPLETED" in states.values(), log
    assert log.count("slice ") >= 7
    assert log.rstrip().endswith("the run is complete"), log[-2000:]
    assert state_of(newest(run)) == state_of(newest(undisturbed))
    assert samples(run) == samples(undisturbed)
    assert curve(run, "train/text_loss") == curve(undisturbed, "train/text_loss")
    rows = attempts(open_storage(str(run)))
    assert len(rows) == 7
    assert {row.record.scheduler["chain"] for row in rows} == {chain}
    assert rows[2].record.previous_end == "killed: it wrote no end"
    assert rows[1].record.previous_end.startswith("stopped, exit code 75")
    assert [row.outcome for row in rows][-1] == "complete"


def ended(cluster: Cluster, chain: str) -> Callable[[], bool]:
    return lambda: over(cluster, chain)


def test_a_preemption_before_the_trainer_listens_is_no_failure(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path
) -> None:
    write_config(desk, world, tmp_path / "run", **SHORT)
    # The first start takes long to come as far as a handler, as on a slow file system.
    (desk / ".venv").unlink()
    trainer = desk / ".venv/bin/indextts-job"
    trainer.parent.mkdir(parents=True)
    real = Path(sys.prefix) / "bin/indextts-job"
    slow = "[ -e started ] || { touch started; exec sleep 600; }"
    trainer.write_text(f'#!/bin/bash\n{slow}\nexec {real} "$@"\n', encoding="utf-8")
    trainer.chmod(0o755)
    chain = submit(cluster, desk)
    wait_until((desk / "started").exists, "the trainer is starting")
    other = cluster.occupy(desk)
    wait_until(lambda: cluster.state(other) == "RUNNING", "the job of higher priority runs")
    cluster.call("scancel", other)
    wait_until(ended(cluster, chain), "the chain is over")
    log = log_of(desk, chain)
    assert "failure" not in log, log
    assert log.rstrip().endswith("the run is complete"), log


def test_a_chain_that_is_complete_drops_what_is_left_of_it(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path
) -> None:
    write_config(desk, world, tmp_path / "run", **SHORT)
    chain = submit(cluster, desk)
    wait_until(ended(cluster, chain), "the chain is over")
    assert cluster.state(f"{chain}_1") == "COMPLETED", log_of(desk, chain)
    assert log_of(desk, chain).count("slice ") == 1
    again = submit(cluster, desk)
    wait_until(ended(cluster, again), "the second chain is over")
    assert "complete at step 40" in log_of(desk, again)


def test_a_wrong_configuration_ends_the_chain_at_once_and_says_why(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path
) -> None:
    write_config(desk, world, tmp_path / "run", inputs__tokenizer="/no/such/tokenizer.model")
    chain = submit(cluster, desk)
    wait_until(ended(cluster, chain), "the chain is over")
    assert cluster.state(f"{chain}_1") == "FAILED"
    log = log_of(desk, chain)
    assert log.count("slice ") == 1
    assert "error: tokenizer not found: /no/such/tokenizer.model" in log
    shown = launch(cluster, desk, "status", chain)
    assert "FAILED" in shown
    assert "error: tokenizer not found: /no/such/tokenizer.model" in shown


def test_an_image_that_nothing_here_can_run_ends_the_chain_at_once(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path
) -> None:
    write_config(desk, world, tmp_path / "run")
    options = ("--cpus", "1", "--memory-gib", "1", "--gpus", "0", "--image", "trainer.sif")
    chain = launch(cluster, desk, "submit", *options, "run.yaml").partition("job ")[2].partition(" ")[0]
    wait_until(ended(cluster, chain), "the chain is over")
    assert cluster.state(f"{chain}_1") == "FAILED"
    assert "slice" not in log_of(desk, chain)
    assert "error: an image is given (trainer.sif), but neither apptainer" in launch(cluster, desk, "status", chain)


def launch(cluster: Cluster, desk: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "launch", "slurm", *arguments]
    environment = {**cluster.environment, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cancelled_chain_stays_cancelled_and_a_later_one_goes_on(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_config(desk, world, run, **{**LONG, "schedule__max_steps": 100_000})
    chain = submit(cluster, desk)
    wait_until(lambda: last_step(run) > 0, "progress")
    launch(cluster, desk, "cancel", chain)
    wait_until(lambda: not trainers(desk), "the trainer has ended", KILL_WAIT_S + 30)
    wait_until(ended(cluster, chain), "the chain is over")
    assert set(tasks(cluster, chain).values()) == {"CANCELLED"}
    stopped_at = newest(run)
    # By its log and not by its tags: a stop at a step that is saved anyway needs no checkpoint of its own.
    assert f"stopped at step {stopped_at.name.step}, exit code 75" in log_of(desk, chain)
    store_of(run).verify(stopped_at)
    write_config(desk, world, run, **{**LONG, "schedule__max_steps": stopped_at.name.step + 20})
    path = desk / "run.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("accept: []", "accept: [schedule.max_steps]"))
    again = submit(cluster, desk)
    wait_until(ended(cluster, again), "the second chain is over")
    assert f"step {stopped_at.name.step} of {stopped_at.name.step + 20}" in log_of(desk, again)
    assert "final" in newest(run).name.tags


def test_two_chains_for_one_run_leave_one_writer(cluster: Cluster, world: World, desk: Path, tmp_path: Path) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    keys = {**LONG, "schedule__max_steps": 600}
    write_config(desk, world, run, **keys)
    chains = [submit(cluster, desk) for _ in range(2)]  # the node has two CPUs
    for chain in chains:
        wait_until(ended(cluster, chain), "both chains are over", 240)
    command = [sys.executable, "-m", "indextts_job", "train", str(desk / "run.yaml"), f"run={undisturbed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert state_of(newest(run)) == state_of(newest(undisturbed))
    assert samples(run) == samples(undisturbed)
    refused = [chain for chain in chains if "error: two jobs were started for the run" in log_of(desk, chain)]
    assert len(refused) == 1
    assert log_of(desk, refused[0]).count("slice ") == 1


def test_a_grace_shorter_than_a_save_leaves_the_last_checkpoint(
    cluster: Cluster, world: World, desk: Path, seaweed: Server, s3_run: str, connect: Connect
) -> None:
    line = HeldLine()
    write_config(desk, world, s3_run, storage__retry_seconds=60, **{**LONG, "schedule__max_steps": 400})
    cluster.call("scontrol", "update", "PartitionName=spot", "GraceTime=1")
    try:
        with proxy(seaweed.port, line) as (url, _faults):
            connect(url)
            chain = submit(cluster, desk)
            assert line.uploading.wait(120), log_of(desk, chain)
            other = cluster.occupy(desk)
            wait_until(lambda: cluster.state(other) == "RUNNING", "the trainer is killed, the node is taken")
            assert not trainers(desk)
            connect(seaweed.url)
            (before,) = store_of(s3_run).names()
            store_of(s3_run).verify(newest(s3_run))
            line.let_go.set()
            cluster.call("scancel", other)
            wait_until(ended(cluster, chain), "the chain is over")
    finally:
        line.let_go.set()
        cluster.call("scontrol", "update", "PartitionName=spot", f"GraceTime={cluster.grace_s}")
    log = log_of(desk, chain)
    assert "1 s of grace" in log
    assert f"step {before.step} of 400" in log
    assert log.rstrip().endswith("the run is complete"), log


@pytest.fixture
def first_last() -> Iterator[str]:
    """A user whose name has a dot."""
    name = "first.last"
    subprocess.run(["useradd", "--badname", "--no-create-home", name], check=True)
    yield name
    subprocess.run(["userdel", name], check=True, capture_output=True)


def test_a_user_with_a_dot_and_a_trainer_that_always_crashes(
    cluster: Cluster, first_last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="desk of ") as name:
        desk = Path(name)
        shutil.chown(desk, first_last)
        # There is no virtual environment here: every slice ends with 2 at once.
        command = ["runuser", "-u", first_last, "--", "sbatch", "--parsable", *WITHOUT_GPU]
        chain = cluster.call(*command, script=SCRIPT.read_text(encoding="utf-8"), cwd=desk).strip()
        wait_until(ended(cluster, chain), "the chain is over")
        log = log_of(desk, chain)
        assert log.count("slice ") == 3
        assert "failure 3 in a row without a new checkpoint, of at most 3" in log
        assert not list(desk.glob("*.failures"))
        monkeypatch.setenv("LOGNAME", first_last)
        assert f"{chain}_3" in launch(cluster, desk, "status")


@pytest.mark.parametrize("folder", ["logs", "deep/er logs"])
def test_the_launcher_makes_the_folder_of_the_logs(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path, folder: str
) -> None:
    write_config(desk, world, tmp_path / "run", **SHORT)
    script = launch(cluster, desk, "submit", "--dry-run", "--log-folder", folder)
    assert script != SCRIPT.read_text(encoding="utf-8")
    options = ("--cpus", "1", "--memory-gib", "1", "--gpus", "0", "--log-folder", folder)
    shown = launch(cluster, desk, "submit", *options, "run.yaml")
    chain = shown.partition("job ")[2].partition(" ")[0]
    wait_until(ended(cluster, chain), "the chain is over")
    assert "complete at step 40" in (desk / folder / f"indextts-{chain}.log").read_text(encoding="utf-8")
    assert "complete at step 40" in launch(cluster, desk, "logs", chain)


def test_two_nodes_are_preempted_together_and_go_on(
    cluster: Cluster, world: World, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # both nodes are this machine
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    keys: dict[str, Any] = {**LONG, "schedule__max_steps": 150, "checkpoint__interval_steps": 20}
    assert attempt(config_for(world, undisturbed, recipe__dropout=0.0, **keys)).code == 0
    write_config(desk, world, run, recipe__dropout=0.0, **keys)
    chain = submit(cluster, desk, "--partition=pair", "--nodes=2")
    wait_until(progressed(cluster, chain, run, 20), "progress on two nodes")
    assert len(trainers(desk)) == 2  # one on each node, which starts its ranks
    other = cluster.occupy(desk)
    wait_until(lambda: cluster.state(other) == "RUNNING", "the job of higher priority runs")
    cluster.call("scancel", other)
    wait_until(lambda: over(cluster, chain), "the chain is over", 300)
    (last,) = [row for row in attempts(open_storage(str(run))) if row.outcome == "complete"]
    assert last.record.device.startswith("2 x ")
    assert "complete at step 150" in log_of(desk, chain)
    used, expected = samples(run), samples(undisturbed)
    assert {step: sorted(ids) for step, ids in used.items()} == {step: sorted(ids) for step, ids in expected.items()}
    rows = [row.outcome for row in attempts(open_storage(str(run)))]
    assert rows == ["stopped", "complete"]
