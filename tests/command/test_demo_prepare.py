"""`demo prepare` as a user runs it: voices, two kills, a dataset, a training whose loss falls."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from indextts_job.cli import main
from tests.support.parts import demand_nothing_missing


def test_voices_become_a_model_that_learns_in_spite_of_two_kills(tmp_path: Path) -> None:
    demand_nothing_missing("" if shutil.which("espeak-ng") else "espeak-ng not installed: apt-get install espeak-ng")
    command = [sys.executable, "-m", "indextts_job", "demo", "prepare", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trainer ended with 75 (stopped on request" in done.stdout
    assert "trainer ended with 137 (killed by SIGKILL)" in done.stdout
    assert "The model learns from prepared audio." in done.stdout
    assert "12 made, each once" in done.stdout
    assert "24 taken, 0 refused" in done.stdout


def test_without_espeak_the_demo_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo", "prepare", "--folder", str(tmp_path / "demo")]) == 78
    assert "espeak-ng is not installed" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
