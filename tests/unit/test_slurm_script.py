"""The batch script that the launcher prints, and what it reads from SLURM's commands."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from indextts_job.errors import ConfigError, UnavailableError
from launch.cli import main
from launch.job import Job
from launch.slurm import SlurmCluster, SlurmOptions, last_error, render

COMMITTED = Path(__file__).resolve().parents[2] / "slurm/train.sbatch"
SHOWN = (
    "JobId=7 ArrayJobId=6 ArrayTaskId=2 JobName=amharic UserId=first.last(1001) GroupId=x(1) MCS_label=N/A "
    "JobState=RUNNING Reason=None Dependency=(null) Restarts=1 RunTime=00:00:09 NodeList=n1 "
    "StartTime=2026-11-21T12:00:00 WorkDir=/home/a b StdOut=/home/a b/amharic-6.log Power=\n"
    "JobId=6 ArrayJobId=6 ArrayTaskId=3-20%1 JobName=amharic UserId=first.last(1001) JobState=PENDING "
    "Reason=JobArrayTaskLimit Restarts=0 RunTime=00:00:00 NodeList= StdOut=/home/a b/amharic-6.log Power=\n"
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def answering(code: int, output: str, error: str = "") -> Run:
    return lambda command, **_named: subprocess.CompletedProcess(command, code, output, error)


def test_the_committed_script_is_what_the_launcher_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "submit", "--dry-run"]) == 0
    assert capsys.readouterr().out == COMMITTED.read_text(encoding="utf-8")


def test_a_job_s_values_reach_the_script_quoted(tmp_path: Path) -> None:
    job = Job(
        name="am", arguments=("s3://b/my run.yaml", "schedule.epochs=3"), image="a b.sif", gpus=0, grace_seconds=90
    )
    script = render(
        job, SlurmOptions(account="lab", partition="spot", slices=3, time_limit="1:00", log_folder="my logs")
    )
    for line in (
        "#SBATCH --account=lab",
        "#SBATCH --partition=spot",
        "#SBATCH --array=1-3%1",
        '#SBATCH --output="my logs/%x-%A.log"',
        "#SBATCH --signal=USR2@90",
        "grace=90",
        "arguments=('s3://b/my run.yaml' schedule.epochs=3)",
        "image='a b.sif'",
        "##SBATCH --gres=gpu:…",
    ):
        assert f"\n{line}\n" in script
    path = tmp_path / "script"
    path.write_text(script, encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    "options",
    [
        ("--name", "my job"),
        ("--name", "../../etc/job"),
        ("--name", "a\n#SBATCH --uid=root"),
        ("--name", "-x"),
        ("--account", "lab\n#SBATCH --qos=high"),
        ("--partition", "a b"),
        ("--time", "1:00\n#SBATCH --exclusive"),
        ("--time", "soon"),
        ("--time", ""),
        ("--log-folder", "logs\n#SBATCH --exclusive"),
        ("--log-folder", 'a"b'),
        ("--slices", "0"),
        ("--nodes", "0"),
        ("--cpus", "-1"),
        ("--grace-seconds", "0"),
    ],
)
def test_what_no_directive_can_hold_is_refused(options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "submit", "--dry-run", *options]) == 78
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "expected" in shown.err


@pytest.mark.parametrize("time", ["30", "30:00", "24:00:00", "2-12", "2-12:30", "2-12:30:00", "UNLIMITED"])
def test_a_time_limit_is_whatever_slurm_takes(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "submit", "--dry-run", "--time", time]) == 0
    assert f"#SBATCH --time={time}\n" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["a b", "$(touch x)", "a\nb", "'", "$HOME", "`id`", "\\", "*", "a;b", '"'])
def test_every_argument_reaches_the_trainer_as_it_was_given(tmp_path: Path, argument: str) -> None:
    script = render(Job(arguments=("run.yaml", argument)), SlurmOptions())
    line = script[script.index("\narguments=") : script.index("\n# An Apptainer image")]
    command = ["bash", "-c", f"{line}\nprintf '%s\\0' \"${{arguments[@]}}\""]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split("\0")[:-1] == ["run.yaml", argument]


def test_tasks_are_read_whatever_the_values_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "first.last")
    cluster = SlurmCluster(answering(0, SHOWN))
    running, waiting = cluster.tasks("6")
    assert (running.name, waiting.name) == ("6_2", "6_3-20%1")
    assert running.log == Path("/home/a b/amharic-6.log")
    assert running.row()[1:] == ("RUNNING", "1", "00:00:09", "11-21 12:00")
    assert running.notes() == ("node n1", "")
    assert waiting.row()[1:] == ("PENDING", "0", "00:00:00", "")
    assert waiting.notes() == ("", "JobArrayTaskLimit")
    assert cluster.find("amharic") == "6"
    assert cluster.find("17") == "17"
    with pytest.raises(ConfigError, match=r"no job of first\.last named other"):
        cluster.find("other")


def test_failures_of_slurm_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^sbatch: error: invalid account$"):
        SlurmCluster(answering(1, "", "error:  invalid\naccount\n")).submit("", SlurmOptions())

    def missing(command: list[str], **_named: object) -> "subprocess.CompletedProcess[str]":
        raise FileNotFoundError(command[0])

    with pytest.raises(ConfigError, match="login node"):
        SlurmCluster(missing).cancel("1")

    def silent(command: list[str], *, timeout: float, **_named: object) -> "subprocess.CompletedProcess[str]":
        raise subprocess.TimeoutExpired(command, timeout)

    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--log-folder"):
        SlurmCluster(missing).submit("", SlurmOptions(log_folder=str(tmp_path / "file")))
    with pytest.raises(UnavailableError, match=r"^scancel: no answer in 120 s"):
        SlurmCluster(silent).cancel("1")


def test_the_last_error_of_a_log_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(log) == ""
    log.write_text("x\n" * 100_000 + "error: first\nerror: second\nslurm  over\n")
    assert last_error(log) == "error: second"


def test_a_wrong_configuration_is_found_before_it_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM to get as far as
    assert main(["slurm", "submit"]) == 78
    assert "run.yaml: No such file or directory" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("schedul: {}\n")
    assert main(["slurm", "submit"]) == 78
    assert "schedul" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("inputs: {tokenizer: t.model}\ndata: {train_manifests: [m.jsonl]}\n")
    old = ["--config", "model.yaml", "--train-manifest", "m.jsonl"]
    for arguments in (["run.yaml"], ["run.yaml", "recipe.seed=3"], ["s3://bucket/run.yaml"], ["run=runs/am"], old):
        assert main(["slurm", "submit", "--", *arguments]) == 78
        assert "sbatch not found" in capsys.readouterr().err
    assert main(["slurm", "submit", "--", "run.yaml", "recipe.sed=3"]) == 78
    assert "recipe.sed" in capsys.readouterr().err
