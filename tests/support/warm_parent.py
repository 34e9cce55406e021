"""Real attempts in real processes, forked from a parent that has imported everything, so that one costs 0.1 s.

The parent is a process of its own with a single thread. For every order it forks a child, which runs one attempt and
may send itself a real signal at its n-th point: a forward pass (training or validation), an fsync, a rename, a link,
a deletion, or a request to an object store. A point is named by its kind, so a test can see where it struck.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from indextts_job.config import RunConfig
from launch.job import shell_code

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Interruption:
    """Send `signal_number` at the `at`-th point, counted from 1."""

    signal_number: int
    at: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended."""

    code: int
    struck_at: str
    """Kind of the point where the signal was sent; empty when the attempt ended before."""


class WarmParent:
    """Runs attempts one after the other."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def attempt(self, config: RunConfig, log: Path, interruption: Interruption | None = None) -> Ended:
        """One attempt.

        Args:
            config: Its configuration.
            log: File that its output is appended to.
            interruption: The signal it sends itself.
        """
        assert self._process.stdin
        assert self._process.stdout
        order = {
            "config": config.to_json(),
            "log": str(log),
            "signal": interruption.signal_number if interruption else 0,
            "at": interruption.at if interruption else 0,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["code"], answer["struck_at"])


def _serve() -> None:
    # Imported before the fork; nothing below may start a thread here.
    import s3fs  # noqa: F401
    import torch

    from indextts_job.attempt import run  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _run_child(order, writing)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            struck_at = pipe.read()
        code = shell_code(os.waitstatus_to_exitcode(status))
        print(json.dumps({"code": code, "struck_at": struck_at}), flush=True)  # noqa: T201  # the answer


def _run_child(order: dict[str, Any], writing: int) -> None:
    from indextts_job import errors
    from indextts_job.attempt.run import run_attempt
    from indextts_job.preemption.signals import StopSignals
    from indextts_job.report.console import ConsoleReport

    code = errors.EXIT_SOFTWARE
    # A plain exit would run the parent's clean-up; every way out of the child is os._exit.
    try:
        with Path(order["log"]).open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            stop = StopSignals()
            stop.install()
            if order["at"]:
                _install_points(order["signal"], order["at"], writing)
            config = RunConfig.from_json(order["config"], "order")
            with ConsoleReport(log) as console:
                try:
                    code = run_attempt(config, stop, console)
                except errors.IndexTTSJobError as error:
                    print(f"error: {error}", file=log)
                    code = error.exit_code
    finally:
        os._exit(code)


def _install_points(number: int, at: int, writing: int) -> None:
    import torch

    from indextts_job.model.unified_voice import UnifiedVoice

    count = 0

    def point(kind: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.write(writing, kind.encode())
            os.kill(os.getpid(), number)

    def forward(module: torch.nn.Module, _inputs: object) -> None:
        if isinstance(module, UnifiedVoice):
            point("training" if module.training else "validation")

    torch.nn.modules.module.register_module_forward_pre_hook(forward)
    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, _pointed(getattr(os, name), name, point))
    _install_s3_points(point)


def _install_s3_points(point: Callable[[str], None]) -> None:
    """A point before and after every request to an object store."""
    from aiobotocore.client import AioBaseClient

    call = AioBaseClient._make_api_call

    async def pointed(client: Any, operation: str, parameters: Any) -> Any:
        point(f"{operation} before")
        result = await call(client, operation, parameters)
        point(f"{operation} after")
        return result

    AioBaseClient._make_api_call = pointed


def _pointed(function: Any, name: str, point: Any) -> Any:
    def wrapper(*arguments: Any, **named: Any) -> Any:
        point(f"{name} before")
        result = function(*arguments, **named)
        point(f"{name} after")
        return result

    return wrapper


def rounds(start: int) -> Iterator[int]:
    """Numbers from `start` on, bounded: a run that never ends must not hang a test."""
    return iter(range(start, start + 200))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve()
