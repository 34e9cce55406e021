"""What the committed batch script does about an exit code, with stand-ins for SLURM's commands."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm/train.sbatch"
RUNNING = "JobId=7 JobState=RUNNING Reason=None PreemptEligibleTime=2026-11-21T12:00:00 PreemptTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-21T12:00:09")
TIMED_OUT = "JobId=7 JobState=COMPLETING Reason=TimeLimit PreemptTime=None"
TAKEN = "JobId=7 JobState=PENDING Reason=BeginTime PreemptTime=None"


@dataclass
class Desk:
    """A folder to submit from, and programs that answer as SLURM's do."""

    folder: Path

    def program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def slice(self, trainer: str, job: str = RUNNING, task: int = 1) -> tuple[int, str, str]:
        """One slice; exit code, log, and what was asked of SLURM.

        Args:
            trainer: Lines of bash that `srun` runs in place of the trainer.
            job: What `scontrol show job` tells when the trainer has ended.
            task: Of the array.
        """
        self.program("srun", trainer)
        shown = (
            f'case "$*" in *"show job"*) echo "{job}" ;; *hostnames*) echo n1 ;; requeue*) echo "$*" >>asked ;; esac'
        )
        self.program("scontrol", shown)
        self.program("scancel", 'echo "scancel $*" >>asked')
        (self.folder / "asked").unlink(missing_ok=True)
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        environment |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_NAME": "am"}
        environment |= {"SLURM_JOB_PARTITION": "spot", "SLURM_NNODES": "1"}
        command = ["bash", str(SCRIPT)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        asked = self.folder / "asked"
        return done.returncode, done.stdout, asked.read_text(encoding="utf-8") if asked.exists() else ""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = tmp_path / "my desk"
    folder.mkdir()
    return Desk(folder)


SIGNAL_SCRIPT = "read -r _ _ _ script _ </proc/$PPID/stat; kill -{} $script"
"""`srun` runs in a shell of its own, whose parent is the script."""
REQUEUED = "requeue 6_1\n"


@pytest.mark.parametrize(
    ("trainer", "job", "asked"),
    [
        ("exit 75", RUNNING, REQUEUED),
        ("exit 143", PREEMPTED, REQUEUED),  # SLURM signals the step and not the script
        ("exit 143", TIMED_OUT, REQUEUED),
        ("exit 130", PREEMPTED, REQUEUED),
        ("exit 140", RUNNING, REQUEUED),  # the notice before the time limit
        ("exit 138", RUNNING, REQUEUED),
        (f"{SIGNAL_SCRIPT.format('TERM')}; exit 143", RUNNING, REQUEUED),
        (f"{SIGNAL_SCRIPT.format('USR2')}; exit 129", RUNNING, REQUEUED),
        (f"{SIGNAL_SCRIPT.format('TERM')}; exit 75", RUNNING, REQUEUED),
        ("exit 143", TAKEN, ""),  # cancelled, or SLURM has queued it again
        ("exit 75", TAKEN, ""),
    ],
)
def test_a_stop_is_no_failure_although_the_trainer_did_not_listen_yet(
    desk: Desk, trainer: str, job: str, asked: str
) -> None:
    code, log, found = desk.slice(trainer, job)
    assert found == asked
    assert code in (75, 143)
    assert "failure" not in log
    assert not list(desk.folder.glob(".am-6.failures"))


@pytest.mark.parametrize("code", [1, 69, 70, 129, 130, 137, 139, 143, 255])
def test_an_end_that_nobody_asked_for_is_a_failure(desk: Desk, code: int) -> None:
    ended, log, asked = desk.slice(f"exit {code}")
    assert (ended, asked) == (code, "")
    assert f"exit code {code}, failure 1 in a row without a new checkpoint, of at most 3" in log


def test_failures_in_a_row_end_the_chain(desk: Desk) -> None:
    for task in (1, 2):
        assert desk.slice("exit 70", task=task)[2] == ""
    _, log, asked = desk.slice("exit 70", task=3)
    assert "failure 3 in a row" in log
    assert asked == "scancel --state=PENDING 6\n"
    assert list(desk.folder.glob(".am-*")) == []


def test_a_new_checkpoint_counts_failures_anew(desk: Desk) -> None:
    def failure(step: int | str) -> str:
        _, log, _ = desk.slice(f'echo {step} >"$INDEXTTS_PROGRESS_FILE"; exit 70')
        return log.partition("failure ")[2][:1]

    assert [failure(step) for step in (50, 50, 90, 90, 120, 120)] == ["1", "2", "1", "2", "1", "2"]
    desk.slice("exit 75")
    assert [failure(120), failure(120)] == ["1", "2"]


@pytest.mark.parametrize("content", ["", "x y\n", "3", "08 09\n", "2 50 and more\n"])
def test_a_count_that_was_cut_off_ends_nothing(desk: Desk, content: str) -> None:
    (desk.folder / ".am-6.failures").write_text(content)
    (desk.folder / ".am-6.progress").write_text(content)
    code, log, _ = desk.slice("exit 70")
    assert code == 70
    assert "in a row" in log


def test_a_finished_run_leaves_nothing_behind(desk: Desk) -> None:
    desk.slice("exit 70")
    _, _, asked = desk.slice('echo 9 >"$INDEXTTS_PROGRESS_FILE"; exit 0', task=2)
    assert asked == "scancel --state=PENDING 6\n"
    assert list(desk.folder.glob(".am-*")) == []
