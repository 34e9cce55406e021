"""What `report.command` is told, and what is said when it does not do its work."""

import json
import sys
from pathlib import Path

import pytest

from indextts_job.report.events import AttemptEnded, Notice
from indextts_job.report.notify import NotifyCommand
from tests.support.waiting import wait_until

END = AttemptEnded(step=6, outcome="failed", exit_code=65, message="bad data")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/program"], "report.command cannot be started, nobody was told: [Errno 2] No such file or"),
        (["sh", "-c", "echo no route; echo to host >&2; exit 3"], "report.command ended with 3: no route\nto host"),
        (["sh", "-c", "while :; do :; done"], "report.command was ended: its 0.1 s are over"),
        (["true"], ""),
    ],
    ids=["missing", "failing", "hanging", "well"],
)
def test_how_it_ended_is_said(caplog: pytest.LogCaptureFixture, command: list[str], said: str) -> None:
    NotifyCommand(command, 0.1 if "while" in command[-1] else 60.0, "run")(END)
    assert [message.startswith(said) for message in caplog.messages] == [True] * bool(said)


def test_the_end_of_an_attempt_is_told_with_its_message(tmp_path: Path) -> None:
    path = tmp_path / "heard"
    writes = [sys.executable, "-c", f"import sys; open({str(path)!r}, 'w').write(sys.stdin.read())"]
    NotifyCommand(writes, 60.0, "run")(END)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "event": "failed", "run": "run", "step": 6, "exit_code": 65, "message": "bad data",
    }  # fmt: skip


@pytest.mark.parametrize("topic", ["guard", "speaking", "overfitting"])
def test_warnings_about_what_a_run_learns_are_told(tmp_path: Path, topic: str) -> None:
    path = tmp_path / "heard"
    reader = NotifyCommand(["sh", "-c", f"cat >{path}.new; mv {path}.new {path}"], 60.0, "run")
    reader(Notice(step=4, topic=topic, message="ሰላም", warning=True))
    wait_until(path.exists, "it was told")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "event": topic, "run": "run", "step": 4, "message": "ሰላም",
    }  # fmt: skip
