"""Acts on failed checks of a loaded state: abort, warn, or ask."""

import sys
import time
from collections.abc import Callable, Iterable

from indextts_job.config import ChecksPolicy
from indextts_job.errors import DataError, StoppedError, findings_message
from indextts_job.preemption.deadline import Stop
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.consistency import Check
from indextts_job.waiting import pause

COUNTDOWN_S = 10
ADVICE = (
    "Nothing was changed. Go back to an older checkpoint (--resume RUN/checkpoints/….json), start anew in another "
    "folder (--output-dir), or train on all the same with resume.checks=warn."
)


def admit(checks: Iterable[Check], policy: ChecksPolicy, stop: Stop, emit: Emit, step: int) -> None:
    """Report checks; return to train on, or raise.

    Args:
        checks: A generator that computes each check when it is asked for.
        policy: `ResumeConfig.checks`.
        stop: Ends a countdown.
        emit: Gets a line for each check, and the result.

    Raises:
        DataError: A check failed and the policy says abort.
        StoppedError: A stop was requested during the countdown.
    """

    def say(message: str, *, warning: bool = False) -> None:
        emit(Notice(step=step, topic="check", message=message, warning=warning))

    failed = _run(checks, say)
    if not failed:
        return
    if policy == "auto":
        # Nobody answers in a batch job; there a state that may be wrong must not train on.
        policy = "ask" if sys.stdin.isatty() and sys.stdout.isatty() else "abort"
    if policy == "abort":
        raise DataError(findings_message("the state that was loaded is not the one that was saved", failed, ADVICE))
    if policy == "warn":
        say(f"{len(failed)} checks failed; training goes on, as resume.checks=warn asks", warning=True)
        return
    say(f"{len(failed)} checks failed. {ADVICE}", warning=True)
    _count_down(stop, say)


def _run(checks: Iterable[Check], say: Callable[..., None]) -> list[str]:
    """Compute the checks, report each, and return those that failed."""
    started_s = time.monotonic()
    say("is what was loaded what was saved?")
    failed, count = [], 0
    for check in checks:
        count += 1
        say(f"{check.name:<14}{'passed' if check.passed else 'FAILED'}: {check.found}", warning=not check.passed)
        if not check.passed:
            failed.append(f"{check.name}: {check.found}")
    if not failed:
        say(f"all {count} checks passed in {time.monotonic() - started_s:.1f} s")
    return failed


def _count_down(stop: Stop, say: Callable[[str], None]) -> None:
    # A countdown instead of a question: input that never comes would hold the GPU, and a stop has to be seen.
    for left in range(COUNTDOWN_S, 0, -1):
        say(f"training goes on in {left} s; Ctrl+C gives up")
        if pause(1.0, stop):
            raise StoppedError("given up during the countdown: nothing was changed, the checkpoint stands.")
