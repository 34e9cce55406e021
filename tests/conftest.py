"""Fixtures for all tests. One thread: small models, and bits that do not depend on the machine's cores."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from indextts_job.demo.world import World, make_world
from tests.support.runs import TINY
from tests.support.warm_parent import WarmParent

torch.set_num_threads(1)
settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
# `make fuzz`: about an hour, other examples each time.
settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
settings.load_profile("tests")


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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A dataset of 40 pairs with an extended tokenizer; tests do not change it."""
    return make_world(tmp_path_factory.mktemp("world"), TINY)


@pytest.fixture(scope="session")
def warm_parent() -> Iterator[WarmParent]:
    with WarmParent() as parent:
        yield parent


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"
