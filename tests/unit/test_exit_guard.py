"""The guard ends a process whose main thread cannot, at the bound of its phase, and says what that means."""

import math
import queue
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from indextts_job.preemption.deadline import StopRequest
from indextts_job.preemption.exit_guard import BEFORE_DEADLINE_S, LEAVE_S, ExitGuard
from indextts_job.preemption.signals import StopSignals

REQUEST = StopRequest("SIGTERM", 10.0, 500.0)


def test_the_deadline_counts_while_there_is_work_to_end_well() -> None:
    guard = ExitGuard(StopSignals())
    soon_s = REQUEST.requested_at_s + LEAVE_S
    assert guard.bound_s(REQUEST) == soon_s
    with guard.working("it was cut off"):
        assert guard.bound_s(REQUEST) == REQUEST.deadline_at_s - BEFORE_DEADLINE_S
        assert guard.bound_s(StopRequest("SIGTERM", 10.0, 11.0)) == soon_s
    assert guard.bound_s(REQUEST) == soon_s
    with pytest.raises(ValueError, match="an error"), guard.training():
        raise ValueError("an error")
    assert guard.bound_s(REQUEST) == soon_s


@contextmanager
def ended_process(guard_of: StopSignals) -> Iterator[tuple[ExitGuard, "queue.Queue[int]"]]:
    """A guard whose time is over when a stop is requested, and the codes with which it ends the process."""
    codes: queue.Queue[int] = queue.Queue()
    guard = ExitGuard(guard_of, codes.put, lambda: math.inf if guard_of() else 0.0)
    guard.watch()
    try:
        yield guard, codes
    finally:
        guard.dismiss()


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (None, "before training began: nothing to save, the last checkpoint stands."),
        ("training", "is over, and the last save was not done in it. The last committed checkpoint stands"),
        ("prepare", "is over, and the batch in work was not done in it. Finished units are committed"),
    ],
)
def test_what_was_cut_off_is_said(capfd: pytest.CaptureFixture[str], phase: str | None, said: str) -> None:
    from indextts_job.commands.prepare import CUT_OFF

    stop = StopSignals()
    with ended_process(stop) as (guard, codes):
        working = guard.working(CUT_OFF) if phase == "prepare" else guard.training() if phase else nullcontext()
        with working:
            stop.notice("a reclaim", 1.0)
            assert codes.get(timeout=60) == EXIT_STOPPED
    assert said in capfd.readouterr().err


def test_behind_the_work_its_code_counts(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignals()
    with ended_process(stop) as (guard, codes), guard.training():
        guard.leaves(EXIT_OK)
        stop.notice("a reclaim", 1.0)
        assert codes.get(timeout=60) == EXIT_OK
    assert capfd.readouterr().err == ""
