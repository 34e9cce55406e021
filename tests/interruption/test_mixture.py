"""I1, I2 for a weighted mixture: whatever kills the process wherever, the run ends as if nothing had happened."""

import random
import signal
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from tests.support.mixed import KINDS, mixture_keys
from tests.support.runs import config_for, newest, samples, state_of
from tests.support.warm_parent import Interruption, WarmParent, rounds

WANTED_INTERRUPTIONS = 12
LONGEST_LIFE = 90


@pytest.mark.parametrize("kind", KINDS[1:])
def test_interruptions_of_a_mixture_leave_no_trace(
    world: World, warm_parent: WarmParent, tmp_path: Path, log: Path, kind: str
) -> None:
    keys = mixture_keys(world, tmp_path / "sources", kind)
    undisturbed = tmp_path / "undisturbed"
    assert warm_parent.attempt(config_for(world, undisturbed, **keys), log).code == EXIT_OK, log.read_text()
    chance = random.Random(kind)
    struck = 0
    for number in rounds(0):
        run = tmp_path / f"run-{number}"
        for _ in rounds(0):
            strike = Interruption(chance.choice([signal.SIGKILL, signal.SIGTERM]), chance.randint(1, LONGEST_LIFE))
            config = config_for(world, run, preemption__grace_seconds=chance.choice([0, 3600]), **keys)
            ended = warm_parent.attempt(config, log, strike)
            struck += bool(ended.struck_at)
            assert ended.code in (EXIT_OK, EXIT_STOPPED, 128 + signal.SIGKILL), log.read_text()
            if ended.code == EXIT_OK:
                break
        assert state_of(newest(run)) == state_of(newest(undisturbed))
        assert samples(run) == samples(undisturbed)
        if struck >= WANTED_INTERRUPTIONS:
            return
