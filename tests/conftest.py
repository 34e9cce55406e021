"""Fixtures for all tests. One thread: small models, and bits that do not depend on the machine's cores.

Imports no torch, nor anything that does: most unit tests need none, and it takes longer than all of them.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from indextts_job.demo.world import World
    from tests.support.warm_parent import WarmParent

settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
# `make fuzz`: about an hour, other examples each time.
settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
settings.load_profile("tests")


# `nohup make test`: an ignored SIGHUP is inherited, and the trainer leaves it ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Whoever imported torch, and whatever an attempt in this process has set."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Minutes of each suite, so that it is seen where the time of CI goes."""
    minutes: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                suite = "/".join(report.nodeid.split("/")[:2])
                minutes[suite] = minutes.get(suite, 0.0) + report.duration / 60
    terminalreporter.section("minutes of one core by suite")
    for suite, spent in sorted(minutes.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{spent:7.1f}  {suite}")


def pytest_sessionfinish() -> None:
    """The trainer leaves by `os._exit`, pytest does not: a thread that is in torch then would abort the process."""
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(timeout=10)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """A dataset of 40 pairs with an extended tokenizer; tests do not change it."""
    import torch

    from indextts_job.demo.world import make_world
    from tests.support.runs import TINY

    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"), TINY)


@pytest.fixture(scope="session")
def warm_parent() -> Iterator["WarmParent"]:
    from tests.support.warm_parent import WarmParent

    with WarmParent() as parent:
        yield parent


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"
