"""Deterministic kernels can be asked for; everything that a step does has one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, state_of


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_a_whole_run_has_deterministic_kernels(world: World, tmp_path: Path) -> None:
    keys: dict[str, object] = {"hardware__deterministic": True, "recipe__dropout": 0.1}
    found = attempt(config_for(world, tmp_path / "one", **keys))
    assert found.code == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert "deterministic kernels" in found.output
    assert attempt(config_for(world, tmp_path / "other", recipe__dropout=0.1)).code == 0
    assert state_of(newest(tmp_path / "one")) == state_of(newest(tmp_path / "other"))
