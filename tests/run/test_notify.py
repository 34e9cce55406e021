"""`report.command`: told of ends and warnings, and never able to fail or hold a run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED
from indextts_job.report.events import Notice
from indextts_job.report.notify import NotifyCommand
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, state_of

KEYS = {"schedule__max_steps": 6}


def writer(path: Path, more: str = "") -> list[str]:
    """A command that appends what it is told to a file."""
    return [sys.executable, "-c", f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read() + chr(10)); {more}"]


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_is_told_how_each_attempt_ended(world: World, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    config = config_for(world, tmp_path / "run", report__command=writer(heard), **KEYS)
    assert attempt(config, 3).code == EXIT_STOPPED
    assert attempt(config).code == EXIT_OK
    stopped, complete = told(heard)
    assert (stopped["event"], stopped["step"], stopped["exit_code"], stopped["attempt"]) == ("stopped", 3, 75, 1)
    assert (complete["event"], complete["step"], complete["exit_code"], complete["attempt"]) == ("complete", 6, 0, 2)
    assert complete["run"] == str(tmp_path / "run")
    assert complete["total_steps"] == 6


@pytest.mark.parametrize(
    "command",
    [["/no/such/program"], [sys.executable, "-c", "import sys; sys.exit(3)"], ["sleep", "60"]],
    ids=["missing", "failing", "hanging"],
)
def test_it_neither_fails_nor_holds_a_run(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, command: list[str]
) -> None:
    keys = {**KEYS, "report__command_seconds": 0.2}
    assert attempt(config_for(world, tmp_path / "plain", **KEYS)).code == EXIT_OK
    assert attempt(config_for(world, tmp_path / "run", report__command=command, **keys)).code == EXIT_OK
    assert state_of(newest(tmp_path / "run")) == state_of(newest(tmp_path / "plain"))
    assert "report.command" in caplog.text


def test_warnings_of_the_guard_are_told_while_it_trains(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    reader = NotifyCommand(writer(pipe), 20.0, "s3://bucket/run")
    reader(Notice(step=4, topic="guard", message="en has risen", warning=True))
    reader(Notice(step=4, topic="guard", message="the base", warning=False))
    reader(Notice(step=4, topic="data", message="a bad sample", warning=True))
    import threading

    for thread in threading.enumerate():
        if thread.name == "notification":
            thread.join(20)
    (found,) = told(pipe)
    assert found == {"event": "guard", "run": "s3://bucket/run", "step": 4, "message": "en has risen"}


def test_a_command_of_a_run_s_record_is_never_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = tmp_path / "heard"
    config = config_for(world, tmp_path / "run", report__command=writer(heard), **KEYS)
    assert attempt(config, 3).code == EXIT_STOPPED
    heard.unlink()
    assert main(["train", "--output-dir", str(tmp_path / "run")]) == EXIT_OK
    assert "report.command of the record" in " ".join(capsys.readouterr().out.split())
    assert not heard.exists()


def test_a_command_in_a_remote_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/run.yaml", b"report: {command: [rm, -rf, x]}")
    assert main(["train", "memory://run.yaml"]) == EXIT_CONFIG
    assert "commands are taken from files of this machine only" in " ".join(capsys.readouterr().err.split())
