"""The console script: takes note of stop signals before anything else, and ends the process itself.

Only modules that the interpreter has loaded anyway, and `signal`, are imported at the top. On a slow file system the
imports of a package take seconds, and a SIGTERM in them would end the process with 143: a crash for its launcher.
"""

import signal
import sys
import time

# ruff: noqa: PLC0415  # the import comes after the handlers, see above


def entry() -> None:
    """Run one command of `indextts-job` and end the process with its exit code."""
    early: list[tuple[int, float]] = []
    if sys.argv[1:2] == ["train"]:
        for name in ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda received, _frame: early.append((received, time.monotonic())))
    from indextts_job.cli import run_process

    run_process(early)


if __name__ == "__main__":
    entry()
