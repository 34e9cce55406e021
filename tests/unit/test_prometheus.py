"""Numbers for Prometheus, in its text format."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from indextts_job.checkpoint.history import LanguageLoss, Losses
from indextts_job.errors import ConfigError
from indextts_job.report.events import AttemptEnded, AttemptStarted, Committed, TimeSpent, TrainLine, Validated
from indextts_job.report.prometheus import PrometheusFile

LOSSES = Losses(text_loss=3.0, mel_loss=4.0, mel_top1=0.25, total=3.8)
LINE = re.compile(r'([a-z0-9_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+)\} (-?[0-9.e+-]+)')
RUN = re.compile(r',?run="(?:[^"\\\n]|\\.)*",?')


def numbers(path: Path, run: str = 's3://b/am\\"har\\\\ic') -> dict[str, float]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            assert f'run="{run}"' in match[2]
            others = ",".join(filter(None, RUN.split(match[2])))
            found[f"{match[1]}{{{others}}}"] = float(match[3])
    return found


def test_the_file_says_where_the_run_stands(tmp_path: Path) -> None:
    path = tmp_path / "run.prom"
    tell = PrometheusFile(path, 's3://b/am"har\\ic')
    tell(AttemptStarted(step=10, attempt=3, total_steps=100, resumed_from=None))
    tell(
        TrainLine(
            step=20,
            epoch=0.5,
            losses=LOSSES,
            learning_rate=1e-5,
            grad_norm=2.0,
            samples_per_s=10.0,
            tokens_per_s=4000.0,
            eta_s=60.0,
            mfu=0.41,
        )
    )
    english = LanguageLoss(language="en", samples=5, text_loss=1.5, mel_loss=2.5, rise=0.02, rise_error=0.01)
    tell(Validated(step=20, losses=LOSSES, best=True, samples=5, seconds=1.0, languages=(english,)))
    tell(Committed(step=20, name="x", tags=(), bytes_written=1, bytes_total=2, seconds=9.0, stall_seconds=0.5))
    tell(TimeSpent(step=20, steps_s=5.0, data_s=1.0, validation_s=2.0, saves_s=0.5))
    found = numbers(path)
    assert found["indextts_job_step{}"] == 20
    assert found["indextts_job_running{}"] == 1
    assert found["indextts_job_mfu{}"] == 0.41
    assert found['indextts_job_loss{kind="text",set="validation"}'] == 3.0
    assert found['indextts_job_language_loss{kind="mel",language="en"}'] == 2.5
    assert found['indextts_job_language_rise{language="en"}'] == 0.02
    assert found['indextts_job_spent_seconds{part="data"}'] == 1.0
    assert found["indextts_job_save_stall_seconds{}"] == 0.5
    tell(AttemptEnded(step=30, outcome="stopped", exit_code=75))
    found = numbers(path)
    assert (found["indextts_job_running{}"], found["indextts_job_exit_code{}"]) == (0, 75)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        PrometheusFile(tmp_path / "none/run.prom", "run")
    (tmp_path / "run.prom").mkdir()
    tell = PrometheusFile(tmp_path / "run.prom", "run")
    for step in (1, 2):
        tell(AttemptEnded(step=step, outcome="stopped", exit_code=75))
    assert len([record for record in caplog.records if "training goes on" in record.message]) == 1


def test_the_client_s_mode_for_several_processes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "nowhere"))
    script = (
        "import sys; from pathlib import Path; from indextts_job.report.prometheus import PrometheusFile\n"
        "from indextts_job.report.events import AttemptEnded\n"
        "PrometheusFile(Path(sys.argv[1]), 'run')(AttemptEnded(step=1, outcome='stopped', exit_code=75))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run.prom")], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.prom"]
    assert numbers(tmp_path / "run.prom", run="run")["indextts_job_exit_code{}"] == 75
