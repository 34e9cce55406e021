"""A kill at every single point of a short run, not at a sample of them."""

import signal
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from tests.support.runs import config_for, newest, samples, state_of
from tests.support.warm_parent import Interruption, WarmParent

SHORT = {
    "schedule__max_steps": 3,
    "schedule__warmup_steps": 1,
    "checkpoint__interval_steps": 2,
    "validation__interval_steps": 2,
    "validation__max_samples": 4,
    "recipe__global_batch_samples": 4,
    "report__log_interval_steps": 1,
    "checkpoint__keep": 1,
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_signal_at_any_point_leaves_no_trace(
    world: World, warm_parent: WarmParent, tmp_path: Path, log: Path, number: signal.Signals
) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert warm_parent.attempt(config_for(world, undisturbed, **SHORT), log).code == EXIT_OK
    expected = state_of(newest(undisturbed))
    for at in range(1, 1000):
        run = tmp_path / f"run-{at}"
        config = config_for(world, run, **SHORT, preemption__grace_seconds=0 if at % 2 else 3600)
        ended = warm_parent.attempt(config, log, Interruption(number, at))
        if not ended.struck_at:
            break
        assert ended.code in (EXIT_OK, EXIT_STOPPED, 137), log.read_text()
        assert warm_parent.attempt(config, log).code == EXIT_OK, log.read_text()
        assert state_of(newest(run)) == expected, ended
        assert samples(run) == samples(undisturbed)
    assert at > 40
