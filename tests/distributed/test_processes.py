"""Several processes of one node as one: their exit codes, their signals, their end."""

import os
import signal
import sys
from pathlib import Path

import pytest

from indextts_job.attempt import processes
from indextts_job.attempt.nodes import Nodes, read_nodes, wanted_processes
from indextts_job.attempt.processes import ProcessesOfNode
from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.preemption.relay import FORWARDED
from indextts_job.training.distributed import read_world
from tests.support.waiting import wait_until


def run(script: str, count: int = 3) -> int:
    """Run ranks that execute a script; the signal handlers of this process are put back."""
    before = {number: signal.getsignal(number) for number in FORWARDED}
    whole = f"import os, sys, signal\nrank = int(os.environ['RANK'])\n{script}"
    try:
        return ProcessesOfNode([sys.executable, "-c", whole], count).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(75 if rank == 1 else 0)", 75),
        ("sys.exit(78)", 78),
        ("sys.exit([69, 65, 69][rank])", 65),  # the loss of a rank is never the cause
        ("sys.exit([75, 69, 69][rank])", 75),
        ("sys.exit([69, 69, 0][rank])", 69),
        ("os.kill(os.getpid(), signal.SIGKILL if rank == 2 else signal.SIGCONT)", 137),
    ],
)
def test_the_exit_code_is_that_of_the_cause(script: str, code: int) -> None:
    assert run(script) == code


def test_who_does_not_end_after_a_failure_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LINGER_S", 0.2)
    assert run("rank == 1 and sys.exit(70)\nsignal.pause()") == 70
    assert run("rank == 0 and sys.exit(0)\nsignal.pause()") == 0


def test_a_rank_that_stops_while_it_starts_takes_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LINGER_S", 0.2)
    assert run("rank == 1 and sys.exit(75)\nsignal.pause()") == 75


def test_an_error_of_another_rank_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    script = "print('out', rank)\nrank == 2 and sys.exit('error: disk on fire') or sys.exit(0)"
    assert run(script) == 1
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["out 0"]
    assert "error: rank 2 of 3: disk on fire" in shown.err


def test_a_signal_reaches_every_rank(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        listen = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
        tell = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').close()"
        os._exit(run(f"{listen}\n{tell}\nsignal.pause()"))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3, "three ranks")
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 75


def test_ranks_that_lose_one_that_a_stop_ended_before_it_listened_have_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Rank 1 dies of the signal; rank 0 listens, loses it and ends with 69.
    monkeypatch.setattr(processes, "LINGER_S", 5.0)
    script = "rank == 0 and signal.signal(signal.SIGTERM, lambda *_: sys.exit(69))\n"
    script += "rank == 0 and os.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()"
    assert run(script, 2) == 75


def test_a_closed_terminal_is_a_stop_for_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest may run under nohup
    try:
        listen = "signal.signal(signal.SIGHUP, lambda *_: sys.exit(75))"
        assert run(f"{listen}\nrank == 0 and os.kill(os.getppid(), signal.SIGHUP)\nsignal.pause()", 2) == 75
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("listens", ["signal.SIG_IGN", "signal.SIG_DFL"])
def test_a_second_ctrl_c_ends_also_who_does_not_listen(monkeypatch: pytest.MonkeyPatch, listens: str) -> None:
    monkeypatch.setattr(processes, "INSISTED_S", 0.2)
    # Rank 0 presses Ctrl+C, hears of it itself, and presses again; rank 1 hangs.
    again = "lambda *_: (signal.signal(signal.SIGINT, " + listens + "), os.kill(os.getppid(), signal.SIGINT))"
    script = f"signal.signal(signal.SIGINT, {again} if rank == 0 else signal.SIG_IGN)\n"
    script += "rank == 0 and os.kill(os.getppid(), signal.SIGINT)\nwhile True: signal.pause()"
    assert run(script, 2) == 130


def test_a_signal_that_came_too_early_reaches_them_too() -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    before = {number: signal.getsignal(number) for number in FORWARDED}
    try:
        assert ProcessesOfNode(command, 2, lambda: True).run() == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_node_knows_its_place_from_its_launcher() -> None:
    several = {"INDEXTTS_NODES": "4", "INDEXTTS_MEETING": "n1:29400"}
    assert read_nodes({}) == Nodes()
    assert read_nodes({"SLURM_NODEID": "3", "INDEXTTS_NODES": "1"}) == Nodes()
    assert read_nodes({**several, "SLURM_NODEID": "3"}) == Nodes(count=4, index=3, meeting="n1:29400")
    assert read_nodes({**several, "JOB_COMPLETION_INDEX": "2"}).index == 2
    assert read_nodes({**several, "INDEXTTS_NODE_INDEX": "1", "SLURM_NODEID": "3"}).index == 1
    assert read_nodes({**several, "INDEXTTS_NODE_NAME": "gpu-7", "JOB_COMPLETION_INDEX": "1"}).index == 1


SEVERAL = {"INDEXTTS_NODES": "2", "INDEXTTS_MEETING": "n1:29400"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"INDEXTTS_NODES": "two"}, "INDEXTTS_NODES"),
        ({"INDEXTTS_NODES": "0"}, "INDEXTTS_NODES"),
        ({"INDEXTTS_NODES": ""}, "INDEXTTS_NODES"),
        ({"INDEXTTS_NODES": "9" * 5000}, "INDEXTTS_NODES"),
        ({}, "none of INDEXTTS_NODE_INDEX, JOB_COMPLETION_INDEX, SLURM_NODEID says which"),
        ({"INDEXTTS_NODE_INDEX": "gpu-node-1"}, "INDEXTTS_NODE_INDEX"),
        ({"INDEXTTS_NODE_INDEX": "-1"}, "INDEXTTS_NODE_INDEX"),
        ({"JOB_COMPLETION_INDEX": "1_0"}, "JOB_COMPLETION_INDEX"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID is 2.*expected 0 … 1"),
        ({"INDEXTTS_MEETING": ""}, "INDEXTTS_MEETING"),
        ({"INDEXTTS_MEETING": "n1"}, "host:port"),
    ],
)
def test_a_variable_that_holds_something_else_is_named(changes: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_nodes({**SEVERAL, **changes})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_rank_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} in the environment is 'x'"):
        read_world({name: "x"})


def device_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("environment", "files", "count"),
    [
        ({}, 2, 2),
        ({}, 0, 1),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1, 1),  # written for the machine, read in a container with one of them
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, 2),  # WSL has no device files
        ({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b,MIG-c"}, 1, 3),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 2, 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, 1),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 2, 1),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-a"}, 8, 1),  # a privileged pod sees the device files of the whole machine
        ({"NVIDIA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, 1, 1),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 4, 4),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, 4, 4),
        ({"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "1,2"}, 4, 2),
    ],
)
def test_there_are_as_many_as_gpus(tmp_path: Path, environment: dict[str, str], files: int, count: int) -> None:
    names = [f"nvidia{index}" for index in range(files)]
    devices = device_files(tmp_path, *names, "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null")
    assert wanted_processes(HardwareConfig(), environment, devices) == count


def test_a_wish_and_ranks_of_somebody_else_come_first(tmp_path: Path) -> None:
    devices = device_files(tmp_path, "nvidia0", "nvidia1")
    assert wanted_processes(HardwareConfig(), {}, tmp_path / "missing") == 1
    assert wanted_processes(HardwareConfig(device="cpu"), {}, devices) == 1
    assert wanted_processes(HardwareConfig(device="cpu", processes=4), {}, devices) == 4
    assert wanted_processes(HardwareConfig(processes=4), {"RANK": "1"}, devices) == 1  # somebody has started them
