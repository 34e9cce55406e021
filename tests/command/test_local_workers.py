"""`indextts-launch local --workers`: a launcher for each worker, and one output."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.prepare.conftest import Run, run, voices  # noqa: F401  # fixtures
from tests.prepare.outcomes import indexes
from tests.support.voices import Voices
from tests.support.warm_parent import REPOSITORY


def test_two_local_workers_make_one_output(
    voices: Voices,  # noqa: F811
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = voices.settings(tmp_path / "alone", unit=1)
    assert run(settings) == 0
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**settings, "output": str(tmp_path / "two")}, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "launch", "local", "--command", "prepare", "--workers", "2", "--", str(path)]
    # As in this process: the last bits of arrays depend on the number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers ended with 0, 0" in done.stdout
    assert "worker 0" in done.stdout
    assert "worker 1" in done.stdout
    assert indexes(tmp_path / "two") == indexes(tmp_path / "alone")
