"""The run that all others are compared with."""

from pathlib import Path

import pytest

from indextts_job.demo.world import World
from tests.distributed.ranks import KEYS
from tests.support.attempts import attempt
from tests.support.runs import config_for


@pytest.fixture(scope="package")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    assert attempt(config_for(world, run, **KEYS)).code == 0
    return run
