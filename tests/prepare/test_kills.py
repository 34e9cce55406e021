"""Killed at any instant, on any number of workers: each utterance once, and the bytes of an undisturbed run."""

from pathlib import Path

from tests.prepare.conftest import Run
from tests.prepare.kills import demand_same, kill_until
from tests.support.voices import Voices

# With those of `tests/s3/test_prepare.py` forty: half of their time is that of processes that start.
KILLS = 24


def test_kills_leave_the_bytes_of_an_undisturbed_run(voices: Voices, run: Run, tmp_path: Path) -> None:
    settings = voices.settings(tmp_path / "undisturbed", unit=1)
    assert run(settings) == 0
    outputs = [str(tmp_path / f"killed-{number}") for number in range(20)]
    killed, made = kill_until(settings, outputs, KILLS, tmp_path, {})
    assert killed >= KILLS
    demand_same(made, str(tmp_path / "undisturbed"))
