"""The console script: stores stop signals before anything else is imported.

Only `signal` and modules that the interpreter has loaded anyway are imported at the top. On a slow file system the
imports of the package take seconds, and a SIGTERM during them would end the process with 143, which launchers count as
a crash.
"""

import signal
import sys
import time

# ruff: noqa: PLC0415  # the import comes after the handlers, see above


def entry() -> None:
    """Run one command of `indextts-job` and end the process with its exit code."""
    # Only a training and a preparation have something to commit, or a code to end with that launchers know; other
    # commands end at once by the default actions.
    early: list[tuple[int, float]] = []
    if sys.argv[1:2] in (["train"], ["prepare"]):
        for name in ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP"):
            number = getattr(signal, name, None)
            # As in `preemption/signals.py`, which takes over: ignored signals stay ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda received, _frame: early.append((received, time.monotonic())))
    from indextts_job.cli import run_process

    run_process(early)


if __name__ == "__main__":
    entry()
