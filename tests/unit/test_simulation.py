"""The interval that loses least, and runs played through."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.errors import ConfigError
from indextts_job.loop.save_interval import SaveInterval, best_interval_s, bounded_interval_s, mean_between_kills_s
from indextts_job.simulation.world import Life, RunPace, average, lives_by_rate, parse_offer, simulate

PACE = RunPace(step_s=2.0, between_s=0.5, stall_s=1.0, save_s=10.0, start_s=60.0, requeue_s=30.0)


def test_the_formula_is_that_of_the_papers() -> None:
    # Young: sqrt(2 x 60 x 86400) = 3220 s; Daly's further terms give 3220 x (1 + 0.00621 + 0.0000386) - 60.
    assert best_interval_s(60.0, 86400.0) == pytest.approx(3180.2, abs=0.2)
    assert best_interval_s(100.0, 10.0) == 10.0
    assert best_interval_s(0.0, 3600.0) == 0.0


def test_the_interval_keeps_to_its_bounds() -> None:
    assert bounded_interval_s(1e-3, 5.0, 3600.0, (60.0, 3600.0)) == 60.0
    assert bounded_interval_s(1e-3, 90.0, 3600.0, (60.0, 3600.0)) == 90.0  # a save lasts as long
    assert bounded_interval_s(500.0, 500.0, 1e6, (60.0, 3600.0)) == 3600.0


def test_a_run_s_own_record_outweighs_the_assumption_in_time() -> None:
    assert mean_between_kills_s(0, 0.0) == 6 * 3600
    assert mean_between_kills_s(99, 94 * 3600.0) == 3600.0


def test_saves_go_by_the_clock_where_that_is_asked_for() -> None:
    now = [0.0]
    interval = SaveInterval(CheckpointConfig(interval_steps=-1, kills_per_day=24.0), 1.0, lambda: now[0])
    assert not interval.due(1000)
    now[0] = 60.0
    assert interval.due(3)
    interval.began()
    assert interval.measured(save_s=20.0, stall_s=8.0)  # from 60 s to about 230 s
    assert interval.seconds == pytest.approx(best_interval_s(8.0, 3600.0))
    assert not interval.measured(save_s=20.0, stall_s=8.1)  # hardly another
    now[0] = 200.0
    assert not interval.due(3)
    now[0] = 300.0
    assert interval.due(3)
    by_steps = SaveInterval(CheckpointConfig(interval_steps=10), 1.0, lambda: now[0])
    assert [step for step in range(1, 31) if by_steps.due(step)] == [10, 20, 30]
    assert not SaveInterval(CheckpointConfig(interval_steps=0), 1.0, lambda: 1e9).due(10)


def test_an_undisturbed_run_takes_what_its_parts_take() -> None:
    found = simulate(1000, 100, PACE, [])
    assert found.wall_s == 60 + 1000 * 2.5 + 9 * 1.0 + 10
    assert found.goodput == pytest.approx(2000 / found.wall_s)
    assert (found.attempts, found.redone_steps) == (1, 0)


def test_a_kill_loses_what_was_not_committed_and_a_notice_loses_nothing() -> None:
    # 60 s start, 40 steps of 2.5 s each: killed in step 41; the save of step 20 counts since second 120.
    killed = simulate(100, 20, PACE, [Life(60 + 1.0 + 40 * 2.5 + 1.0)])
    assert (killed.attempts, killed.redone_steps) == (2, 20)
    noticed = simulate(100, 20, PACE, [Life(60 + 1.0 + 40 * 2.5 + 1.0, noticed=True)])
    assert (noticed.attempts, noticed.redone_steps) == (2, 0)
    # The save of step 20 was not done yet.
    early = simulate(100, 20, PACE, [Life(60 + 20 * 2.5 + 9.0)])
    assert early.redone_steps == 23


def test_a_save_waits_for_the_one_before() -> None:
    slow = RunPace(step_s=1.0, save_s=30.0, start_s=0.0)
    assert simulate(40, 10, slow, []).wall_s == 10 + 30 + 30 + 10 + 30


@given(
    total=st.integers(1, 300),
    interval=st.integers(0, 100),
    lives=st.lists(st.tuples(st.floats(0, 2000), st.booleans()), max_size=20),
)
def test_every_run_ends_and_its_time_adds_up(total: int, interval: int, lives: list[tuple[float, bool]]) -> None:
    found = simulate(total, interval, PACE, [Life(*life) for life in lives])
    assert found.attempts <= len(lives) + 1
    assert found.useful_s == 2.0 * total
    assert found.machine_s <= found.wall_s
    work_s = (total + found.redone_steps) * 2.5
    assert found.machine_s >= work_s - 1e-6
    assert math.isclose(found.wall_s - found.machine_s, 30.0 * (found.attempts - 1), abs_tol=1e-6)


def test_the_best_interval_by_formula_is_the_best_by_simulation() -> None:
    pace = RunPace(step_s=1.0, stall_s=20.0, save_s=20.0, start_s=60.0, requeue_s=0.0)
    per_day = 48.0
    best = round(best_interval_s(20.0, 86400 / per_day))
    goodput = {
        interval: average(20000, interval, pace, per_day, 0.0, 60).goodput for interval in (best // 4, best, best * 4)
    }
    assert max(goodput, key=lambda interval: goodput[interval]) == best


def test_lives_are_as_long_as_the_rate_says() -> None:
    lives = lives_by_rate(24.0, seed=1, noticed_share=0.25)
    some = [next(lives) for _ in range(4000)]
    assert sum(life.seconds for life in some) / 4000 == pytest.approx(3600, rel=0.05)
    assert sum(life.noticed for life in some) / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("text", ["", "L4", "L4:1:2", "L4:x:1:1", "L4:-1:1:1", "L4:1:0:1"])
def test_what_is_no_offer_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME:PRICE:SPEED:KILLS"):
        parse_offer(text)
