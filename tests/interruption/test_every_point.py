"""A kill at every single point of a short run, not at a sample of them."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from tests.support.runs import config_for, newest, samples, state_of
from tests.support.warm_parent import Interruption, WarmParent

HALVES = 2
"""Points are independent of each other, so two processes take them by turns."""
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
def test_a_signal_at_any_point_leaves_no_trace(world: World, tmp_path: Path, number: signal.Signals) -> None:
    undisturbed = tmp_path / "undisturbed"

    def strike_every(first: int) -> int:
        """Every second point from the first on, beside those of the other half; the number of the last point."""
        log = tmp_path / f"log-{first}.txt"
        with WarmParent() as parent:
            for at in range(first, 1000, HALVES):
                run = tmp_path / f"run-{at}"
                config = config_for(world, run, **SHORT, preemption__grace_seconds=0 if at % 3 else 3600)
                ended = parent.attempt(config, log, Interruption(number, at))
                if not ended.struck_at:
                    return at
                assert ended.code in (EXIT_OK, EXIT_STOPPED, 137), log.read_text()
                assert parent.attempt(config, log).code == EXIT_OK, log.read_text()
                assert state_of(newest(run)) == expected, ended
                assert samples(run) == expected_samples
        return 0

    with WarmParent() as parent:
        assert parent.attempt(config_for(world, undisturbed, **SHORT), tmp_path / "log.txt").code == EXIT_OK
    expected, expected_samples = state_of(newest(undisturbed)), samples(undisturbed)
    with ThreadPoolExecutor(HALVES) as pool:
        assert min(pool.map(strike_every, range(1, 1 + HALVES))) > 40
