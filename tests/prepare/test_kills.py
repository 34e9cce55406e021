"""Killed at any instant, on any number of workers: each utterance once, and the bytes of an undisturbed run."""

from pathlib import Path

from tests.prepare.conftest import Run
from tests.prepare.kills import demand_same, kill_until
from tests.support.voices import Voices


def test_forty_kills_leave_the_bytes_of_an_undisturbed_run(voices: Voices, run: Run, tmp_path: Path) -> None:
    settings = voices.settings(tmp_path / "undisturbed", unit=1)
    assert run(settings) == 0
    outputs = [str(tmp_path / f"killed-{number}") for number in range(20)]
    killed, made = kill_until(settings, outputs, 40, tmp_path, {})
    assert killed >= 40
    demand_same(made, str(tmp_path / "undisturbed"))
