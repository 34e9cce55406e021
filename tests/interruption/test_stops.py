"""A stop request at any wait of the program: seen, obeyed, and the process gone within the grace period."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from indextts_job.demo.world import World
from tests.support.runs import config_for, events, newest
from tests.support.warm_parent import REPOSITORY

GRACE_S = 8.0
ENDLESS: dict[str, object] = {"schedule__max_steps": 0, "schedule__epochs": 100_000, "checkpoint__interval_steps": 0}


def written(world: World, run: Path, **keys: object) -> Path:
    path = run.with_name(f"{run.name}.yaml")
    config = config_for(world, run, **{"preemption__grace_seconds": GRACE_S, **keys})
    path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
    return path


@contextmanager
def process(*command: str, **how: object) -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment, **how}
    started: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, *command], cwd=REPOSITORY, **given
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def hanging(pattern: str, folder: Path) -> tuple[str, ...]:
    """A program for which files hang once `folder/trigger` is there; `folder/hangs` tells when one does."""
    return ("-m", "tests.support.hanging", pattern, str(folder / "trigger"), str(folder / "hangs"))


def wait_until(there: Path, child: "subprocess.Popen[str]", text: str = "") -> None:
    limit_s = time.monotonic() + 60
    while not there.exists() or text not in there.read_text(encoding="utf-8", errors="replace"):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit_s
        os.sched_yield()


def wait_until_idle(child: "subprocess.Popen[str]") -> None:
    """Until the process uses no time of a processor: all its threads wait."""
    limit_s = time.monotonic() + 60
    before, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < 0.6:
        # The sum over the threads, those that ended too; their own files go with them. In ticks of 10 ms.
        parts = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        now = (int(parts[11]) + int(parts[12])) // 2
        if now != before:
            before, since_s = now, time.monotonic()
        assert time.monotonic() < limit_s
        os.sched_yield()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_hung_read_of_a_step_loses_nothing(world: World, tmp_path: Path, number: signal.Signals) -> None:
    """Every step that was done is committed, although the next one will never have its data."""
    run, mark = tmp_path / "run", tmp_path / "hangs"
    config = written(world, run, **ENDLESS, data__validation_manifests=[])
    with process(*hanging("processed/condition/utt", tmp_path), "train", str(config)) as child:
        wait_until(run / "samples/attempt-0001.jsonl", child, '"step": 2,')
        (tmp_path / "trigger").touch()
        wait_until(mark, child)
        wait_until_idle(child)  # what was read before has been trained on
        began_s = time.monotonic()
        child.send_signal(number)
        output, _ = child.communicate(timeout=60)
        assert time.monotonic() - began_s < GRACE_S
    assert child.returncode == 75, output
    assert "while its data was waited for" in output
    done = [line for line in (run / "samples/attempt-0001.jsonl").read_text().splitlines() if '"step"' in line]
    assert newest(run).name.step == len(done)
    assert events(run, "AttemptEnded")[-1]["exit_code"] == 75


def test_a_hung_read_of_a_validation_loses_nothing(world: World, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "hangs"
    config = written(world, run, **ENDLESS, validation__interval_steps=3)
    with process(*hanging("processed/condition/val", tmp_path), "train", str(config)) as child:
        wait_until(run / "samples/attempt-0001.jsonl", child, '"resumed_at"')
        (tmp_path / "trigger").touch()
        wait_until(mark, child)
        wait_until(run / "samples/attempt-0001.jsonl", child, '"step": 3,')
        began_s = time.monotonic()
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
        assert time.monotonic() - began_s < GRACE_S
    assert child.returncode == 75, output
    assert "validation postponed" in output
    assert newest(run).name.step % 3 == 0


@pytest.mark.parametrize("pattern", ["train.jsonl", "gpt.pth", "extended_bpe.model", "attempts/"])
def test_a_hung_read_of_the_start_ends_at_once(world: World, tmp_path: Path, pattern: str) -> None:
    """There is nothing to save, so nobody waits for the end of the grace period."""
    mark = tmp_path / "hangs"
    config = written(world, tmp_path / "run", preemption__grace_seconds=3600)
    (tmp_path / "trigger").touch()
    with process(*hanging(pattern, tmp_path), "train", str(config)) as child:
        wait_until(mark, child)
        began_s = time.monotonic()
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
        assert time.monotonic() - began_s < 20
    assert child.returncode == 75, output
    assert "SIGTERM before training began" in output


STUCK = """
import ctypes, sys
from indextts_job.preemption.exit_guard import ExitGuard
from indextts_job.preemption.signals import StopSignals
stop = StopSignals()
stop.install()
guard = ExitGuard(stop)
guard.watch()
mutex = ctypes.create_string_buffer(64)
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock(mutex)
with guard.training():
    print("stuck", flush=True)
    libc.pthread_mutex_lock(mutex)
"""
"""A main thread in a call that no signal ends and in which no handler runs, as in a read of a mount that is away."""


def test_a_second_ctrl_c_ends_a_main_thread_that_is_stuck() -> None:
    with process("-c", STUCK) as child:
        assert child.stdout
        assert child.stdout.readline().strip() == "stuck"
        wait_until_idle(child)  # in the call: before it, Python's handler would run and end the process by the signal
        while child.poll() is None:  # somebody presses it again and again
            child.send_signal(signal.SIGINT)
            os.sched_yield()
    assert child.returncode == 130


def test_a_rank_whose_others_never_come_ends_at_once(world: World, tmp_path: Path) -> None:
    """Half a gang: the processes that got their GPUs wait for those that did not."""
    config = written(world, tmp_path / "run", preemption__grace_seconds=3600)
    rank = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "INDEXTTS_RENDEZVOUS": f"file://{tmp_path}/rendezvous",
    }
    with process(
        "-m", "indextts_job", "train", str(config), env={**os.environ, **rank, "OMP_NUM_THREADS": "1"}
    ) as child:
        wait_until(tmp_path / "rendezvous", child)
        wait_until_idle(child)
        began_s = time.monotonic()
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
        assert time.monotonic() - began_s < 20
    assert child.returncode == 75, output
    assert "before training began" in output


def test_a_hung_write_of_the_last_save_ends_before_the_kill(world: World, tmp_path: Path) -> None:
    """The last commit stands, and the exit code asks for another start: the kill would not."""
    run = tmp_path / "run"
    config = written(world, run, **ENDLESS, preemption__grace_seconds=3, data__validation_manifests=[])
    (tmp_path / "trigger").touch()
    with process(*hanging("objects/.tmp", tmp_path), "train", str(config)) as child:
        wait_until(run / "samples/attempt-0001.jsonl", child, '"step": 2,')
        began_s = time.monotonic()
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
        lasted_s = time.monotonic() - began_s
    assert child.returncode == 75, output
    assert "the last save was not done in it" in output
    assert lasted_s < 3


def test_what_hangs_behind_the_last_commit_is_not_waited_for(world: World, tmp_path: Path) -> None:
    """The log of the attempt gets its last line after the commit; without it nothing is lost."""
    run, mark = tmp_path / "run", tmp_path / "hangs"
    config = written(world, run, **ENDLESS, preemption__grace_seconds=3600, data__validation_manifests=[])
    with process(*hanging("checkpoint_log.json", tmp_path), "train", str(config)) as child:
        wait_until(run / "samples/attempt-0001.jsonl", child, '"step": 2,')
        (tmp_path / "trigger").touch()
        child.send_signal(signal.SIGTERM)
        wait_until(mark, child)
        began_s = time.monotonic()
        output, _ = child.communicate(timeout=60)
        assert time.monotonic() - began_s < 10
    assert child.returncode == 75, output
    assert newest(run).name.step >= 2


STRIKES_AT_IMPORT = """
import importlib.abc, os, signal, sys
class Strike(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "MODULE":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Strike())
from indextts_job.entry import entry
entry()
"""


@pytest.mark.parametrize("module", ["indextts_job.cli", "indextts_job.commands.train", "torch", "rich.console"])
def test_a_signal_during_any_import_is_a_stop(world: World, tmp_path: Path, module: str) -> None:
    config = written(world, tmp_path / "run")
    with process("-c", STRIKES_AT_IMPORT.replace("MODULE", module), "train", str(config)) as child:
        output, _ = child.communicate(timeout=120)
    assert child.returncode == 75, output
    assert "before training began" in output
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_closed_terminal_is_a_stop_that_commits(world: World, tmp_path: Path) -> None:
    """The terminal goes and takes the output along: SIGHUP comes, and every write to it fails."""
    run = tmp_path / "run"
    config = written(world, run, **ENDLESS)
    master, slave = pty.openpty()
    with process(
        "-m", "indextts_job", "train", str(config), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as child:
        os.close(slave)
        wait_until(run / "samples/attempt-0001.jsonl", child, '"step": 2,')
        os.close(master)
        child.send_signal(signal.SIGHUP)
        assert child.wait(timeout=60) == 75
    assert newest(run).name.step >= 2
    assert events(run, "AttemptEnded")[-1]["exit_code"] == 75


def test_nohup_keeps_a_training_alive(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = written(world, run, schedule__max_steps=12)
    ignores = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    command = ("-c", ignores, sys.executable, "-m", "indextts_job", "train", str(config))
    with process(*command) as child:
        wait_until(run / "samples/attempt-0001.jsonl", child, '"step": 1,')
        child.send_signal(signal.SIGHUP)
        output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    assert newest(run).name.step == 12


@pytest.mark.parametrize("where", ["/dev/full", "a pipe without a reader"])
def test_an_output_that_cannot_be_written_stops_no_training(world: World, tmp_path: Path, where: str) -> None:
    run = tmp_path / "run"
    config = written(world, run, schedule__max_steps=6)
    if where == "/dev/full":
        out = os.open(where, os.O_WRONLY)
    else:
        reading, out = os.pipe()
        os.close(reading)
    with process("-m", "indextts_job", "train", str(config), stdout=out, stderr=out) as child:
        os.close(out)
        assert child.wait(timeout=120) == 0
    assert newest(run).name.tags[-1] == "final"
    assert events(run, "AttemptEnded")[-1]["exit_code"] == 0
