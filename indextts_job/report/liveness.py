"""Whether the process of an attempt still runs, where that can be known: on the machine that it was started on."""

import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

from indextts_job.checkpoint.attempt_record import AttemptRecord

PROC = Path("/proc")
START_TOLERANCE_S = 120.0
"""A process that began this much later than an attempt is another one, which got the same number."""


def pid_namespace(proc: Path = PROC) -> str:
    """Where the process numbers of this process count; empty where it cannot be told."""
    try:
        return str((proc / "self/ns/pid").readlink())
    except OSError:
        return ""


def is_running(record: AttemptRecord, proc: Path = PROC) -> bool | None:
    """Whether the process that wrote an attempt's record is there; None where this machine cannot know.

    Args:
        record: The attempt's.
        proc: Folder that the kernel shows processes in.
    """
    pid, here = record.pid, pid_namespace(proc)
    same_place = record.node == platform.node() and here and record.pid_namespace == here
    if not same_place or pid is None:
        return None
    try:
        status = (proc / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        began = _began(status, (proc / "stat").read_text(encoding="ascii", errors="replace"))
        launched = datetime.fromisoformat(record.launched)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, LookupError, ValueError, TypeError, OverflowError):
        return None
    dead = status.rpartition(")")[2].split()[:1] in (["Z"], ["X"])
    return not dead and (began - launched) < timedelta(seconds=START_TOLERANCE_S)


def _began(process: str, machine: str) -> datetime:
    """When a process began: ticks since the machine started, of which the kernel tells the time (proc(5))."""
    ticks = int(process.rpartition(")")[2].split()[19])
    booted_s = next(int(line.split()[1]) for line in machine.splitlines() if line.startswith("btime "))
    return datetime.fromtimestamp(booted_s + ticks / os.sysconf("SC_CLK_TCK"), UTC)
