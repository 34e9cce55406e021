"""Where the time went: crafted histories, and a real run."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from indextts_job.report.attempts import Attempt, attempts
from indextts_job.report.events import TimeSpent
from indextts_job.report.goodput import goodput_text, where_time_went
from indextts_job.report.journal import Logged
from indextts_job.storage.remote_storage import open_storage
from tests.support.attempts import attempt
from tests.support.crafted_attempts import crafted, spent
from tests.support.runs import config_for

BEGIN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat()


def row(launched: float, trained: float, ended: float, *accounts: Logged[TimeSpent], from_step: int = 0) -> Attempt:
    return crafted(
        from_step=from_step,
        spent=accounts,
        launched=at(launched),
        trained=at(trained),
        ended=at(ended),
        heard=at(ended),
    )


def test_a_run_that_nothing_disturbed() -> None:
    rows = [row(0, 10, 110, spent(50, 40.0), spent(100, 90.0, data=2.0, validation=5.0, saves=1.0))]
    assert where_time_went(rows) == pytest.approx(
        {
            "steps": 90,
            "not committed": 0,
            "waiting": 0,
            "start-up": 10,
            "data": 2,
            "validation": 5,
            "saves": 1,
            "lost": 2,
        }
    )
    assert (
        goodput_text(rows)
        == "81.8% in steps that count; start-up 9.1%, data 1.8%, validation 4.5%, saves 0.9%, lost 1.8%"
    )


def test_what_a_kill_takes_back_is_lost() -> None:
    killed = replace(row(0, 10, 100, spent(20, 30.0), spent(40, 60.0)), ended="")
    # Step 40 was being saved when it was killed: the next attempt goes on from 20.
    rows = [killed, row(160, 170, 270, spent(120, 98.0), from_step=20)]
    found = where_time_went(rows)
    assert found["steps"] == 30 + 98
    assert found["lost"] == pytest.approx((100 - 10 - 30) + 2)
    assert found["waiting"] == 60
    assert sum(found.values()) == pytest.approx(270)


def test_what_runs_has_not_lost_what_it_did_since_its_last_account() -> None:
    running = replace(row(0, 10, 100, spent(20, 60.0)), ended="")
    found = where_time_went([running])
    assert (found["steps"], found["not committed"], found["lost"]) == (60, 30, 0)


def test_nobody_waits_for_a_run_that_is_complete() -> None:
    rows = [row(0, 10, 100, spent(90, 90.0)), row(5000, 5010, 5020, from_step=90)]
    assert where_time_went([replace(rows[0], outcome="complete"), rows[1]])["waiting"] == 0
    assert where_time_went([replace(rows[0], outcome="stopped"), rows[1]])["waiting"] == 4900


def test_a_kill_before_the_first_checkpoint_loses_all_of_it() -> None:
    rows = [row(0, 10, 100, spent(20, 80.0)), row(100, 110, 210, spent(40, 95.0))]
    found = where_time_went(rows)
    assert found["steps"] == 95
    assert found["lost"] == pytest.approx(90 + 5)


def test_attempts_that_did_not_account_are_left_out() -> None:
    assert goodput_text([crafted(started=at(0))]) == ""


def test_a_real_run_accounts_for_all_of_its_time(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run)).code == 0
    rows = attempts(open_storage(str(run)))
    (only,) = rows
    found = where_time_went(rows)
    wall_s = (datetime.fromisoformat(only.ended) - datetime.fromisoformat(only.launched)).total_seconds()
    assert sum(found.values()) == pytest.approx(wall_s, abs=0.01)
    assert all(seconds >= 0 for seconds in found.values())
    assert found["steps"] > 0
    assert found["validation"] > 0
    assert [entry.event.step for entry in only.spent][-1] == 24
