"""The stand-in, and a world that is large enough to run out of a small memory."""

import pytest

from indextts_job.demo.world import World, WorldSize, make_world
from tests.gpu_stand_in.environment import StandIn, built, missing
from tests.support.parts import demand_nothing_missing


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    demand_nothing_missing(missing())
    return built(tmp_path_factory.mktemp("stand_in"))


@pytest.fixture(scope="session")
def wide_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model of 3 million parameters: a token takes 50 kB, so that a step of 64 samples fills a small memory."""
    size = WorldSize(samples=160, validation_samples=12, width=256, layers=4, heads=4, words=(1, 3))
    return make_world(tmp_path_factory.mktemp("wide_world"), size)
