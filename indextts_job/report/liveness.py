"""Finds out whether the process of an attempt still runs. Possible only on the machine that it was started on."""

import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

from indextts_job.checkpoint.attempt_record import AttemptRecord

PROC = Path("/proc")
START_TOLERANCE_S = 120.0
"""A process that started this much later than an attempt is another one with a reused process number."""


def pid_namespace(proc: Path = PROC) -> str:
    """The namespace of this process's number, as the kernel names it; empty when unknown."""
    try:
        return str((proc / "self/ns/pid").readlink())
    except OSError:
        return ""


def is_running(record: AttemptRecord, proc: Path = PROC) -> bool | None:
    """Whether the process of an attempt runs; None when this machine cannot know.

    Args:
        record: Record of the attempt.
        proc: The proc file system.
    """
    if record.pid is None or not _started_here(record, proc):
        return None
    try:
        status = (proc / str(record.pid) / "stat").read_text(encoding="ascii", errors="replace")
        began = _began(status, (proc / "stat").read_text(encoding="ascii", errors="replace"))
        launched = datetime.fromisoformat(record.launched)
    # The process may end between two reads; both errors mean that it is gone.
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A proc file system that hides others' processes, or a record without a time: unknown, not dead.
    except (OSError, LookupError, ValueError, TypeError, OverflowError):
        return None
    # A zombie has ended, and its parent has not asked for the exit code yet. The name before it may hold brackets.
    dead = status.rpartition(")")[2].split()[:1] in (["Z"], ["X"])
    return not dead and (began - launched) < timedelta(seconds=START_TOLERANCE_S)


def _started_here(record: AttemptRecord, proc: Path) -> bool:
    # Containers of one host name have process numbers of their own: only the same namespace makes them comparable.
    here = pid_namespace(proc)
    return record.node == platform.node() and here != "" and record.pid_namespace == here


def _began(process: str, machine: str) -> datetime:
    """Start of a process: clock ticks since boot, and the time of the boot (field 22 of stat and `btime`, proc(5))."""
    ticks = int(process.rpartition(")")[2].split()[19])
    booted_s = next(int(line.split()[1]) for line in machine.splitlines() if line.startswith("btime "))
    return datetime.fromtimestamp(booted_s + ticks / os.sysconf("SC_CLK_TCK"), UTC)
