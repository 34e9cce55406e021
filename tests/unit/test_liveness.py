"""Whether the process of an attempt still runs: known on its own machine, and nowhere else."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.report.liveness import is_running, pid_namespace

NOW = datetime.now(UTC)


def record(own: int, **changes: Any) -> AttemptRecord:
    now = datetime.now(UTC).isoformat()
    here = AttemptRecord(pid=own, node=platform.node(), pid_namespace=pid_namespace(), launched=now)
    return replace(here, **changes)


def test_a_process_runs_until_it_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_running(record(process.pid)) is True
        process.kill()
        process.wait()
    assert is_running(record(process.pid)) is False


def test_a_process_that_nobody_has_waited_for_has_ended() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert is_running(record(child)) is False
    os.waitpid(child, 0)


def test_another_process_with_the_same_number_is_not_it() -> None:
    assert is_running(record(os.getpid(), launched=(NOW - timedelta(days=2)).isoformat())) is False


def test_another_machine_or_container_cannot_know() -> None:
    for changes in ({"node": "elsewhere"}, {"pid_namespace": "pid:[1]"}, {"pid_namespace": ""}, {"pid": None}):
        assert is_running(record(os.getpid(), **changes)) is None
    assert is_running(AttemptRecord(node=platform.node(), pid=os.getpid())) is None  # a record of an older version
    assert is_running(record(os.getpid(), launched="yesterday")) is None


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert pid_namespace(tmp_path) == ""
    assert is_running(record(os.getpid()), tmp_path) is None
