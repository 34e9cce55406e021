"""Several processes train on a weighted mixture: the same samples on any number of them, the same bits on the same."""

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from indextts_job.demo.world import World
from tests.distributed.ranks import KEYS, ended, pid_of_rank, same_samples, started, trained, weights
from tests.support.attempts import attempt
from tests.support.mixed import mixture_keys
from tests.support.runs import config_for, newest, state_of
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def keys(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return {**KEYS, **mixture_keys(world, tmp_path_factory.mktemp("sources"), "changing")}


def test_world_sizes_change_at_random_kills(world: World, keys: dict[str, object], tmp_path: Path) -> None:
    chance, run, undisturbed = random.Random(5), tmp_path / "run", tmp_path / "undisturbed"
    assert attempt(config_for(world, undisturbed, **keys)).code == 0
    lives = ((3, signal.SIGKILL), (1, signal.SIGTERM), (4, signal.SIGTERM), (2, signal.SIGKILL))
    for number, (count, kind) in enumerate(lives, start=1):
        process = started(world, run, count, None, **keys)
        wait_until(partial(trained, run, number), "some steps")
        os.kill(process.pid if count == 1 else pid_of_rank(process, chance.randrange(count)), kind)
        assert ended(process)[0] == (75 if kind == signal.SIGTERM else 137)
    assert attempt(config_for(world, run, **keys)).code == 0
    assert same_samples(run, undisturbed)
    assert torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)


def test_interrupted_ranks_give_the_same_bits(world: World, keys: dict[str, object], tmp_path: Path) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    with_dropout: dict[str, object] = {**keys, "recipe__dropout": 0.1, "checkpoint__interval_steps": 5}
    code, output = ended(started(world, undisturbed, 2, None, **with_dropout))
    assert code == 0, output
    process = started(world, run, 2, None, **with_dropout)
    wait_until(lambda: trained(run, 1), "some steps")
    os.kill(pid_of_rank(process, 1), signal.SIGKILL)
    assert ended(process)[0] == 137
    assert ended(started(world, run, 2, None, **with_dropout))[0] == 0
    assert state_of(newest(run)) == state_of(newest(undisturbed))
