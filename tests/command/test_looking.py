"""Commands that look at a run: what they say of nothing, on a small terminal, and to programs."""

import contextlib
import contextvars
import io
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from indextts_job.checkpoint.manifest import parse_manifest
from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.report.attempts import attempts
from indextts_job.report.goodput import kills
from indextts_job.report.liveness import pid_namespace
from indextts_job.storage.local_storage import LocalStorage
from indextts_job.version import program_version
from tests.support.attempts import attempt
from tests.support.runs import config_for, store_of


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looking") / "run"
    assert attempt(config_for(world, folder)).code == 0
    return folder


LOOKS = {
    "status": ["status", "RUN"],
    "status for programs": ["status", "RUN", "--json"],
    "status as a page": ["status", "RUN", "--html", "page.html"],
    "list": ["checkpoints", "list", "RUN"],
    "list for programs": ["checkpoints", "list", "RUN", "--json"],
    "inspect": ["checkpoints", "inspect", "RUN"],
    "compare": ["checkpoints", "compare", "RUN"],
    "keep": ["checkpoints", "keep", "RUN"],
    "export": ["export", "RUN", "--output-dir", "exported"],
    "simulate": ["simulate", "RUN"],
    "doctor checkpoint": ["doctor", "checkpoint", "RUN"],
    "doctor report": ["doctor", "report", "RUN", "--output", "report.json"],
    "list of train": ["train", "--list-checkpoints", "--output-dir", "RUN"],
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_where_no_run_is_every_command_says_so_with_one_code(
    look: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    if kind == "empty":
        folder.mkdir()
    assert main([str(folder) if word == "RUN" else word for word in LOOKS[look]]) == 78
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert str(folder) in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if kind == "empty" else [])


def test_a_run_that_has_only_begun_has_no_checkpoints_yet(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "run"
    (begun / "attempts").mkdir(parents=True)
    (begun / "attempts/0001.json").write_bytes((run / "attempts/0001.json").read_bytes())
    assert main(["checkpoints", "list", str(begun)]) == 0
    assert "no checkpoints yet" in capsys.readouterr().out
    assert main(["checkpoints", "list", str(begun), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["status", str(begun)]) == 0


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def small_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a command on a terminal of 80 columns; its lines, without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def shown(*arguments: str) -> list[str]:
        with contextlib.redirect_stdout(Terminal()) as stream:
            # In a context of its own: on a terminal the patience of the process is short.
            assert contextvars.copy_context().run(main, arguments) == 0
        return lines_of(stream)

    return shown


def lines_of(stream: io.StringIO) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in stream.getvalue().splitlines()]


def test_a_list_of_checkpoints_is_whole_on_a_small_terminal(
    run: Path, small_terminal: Callable[..., list[str]]
) -> None:
    lines = small_terminal("checkpoints", "list", str(run), "--verify")
    assert all(len(line) <= 80 for line in lines if not line.startswith("all of them in"))  # as long as the path is
    names = [line.strip() for line in lines if line.endswith(".json")]
    assert set(names) == {path.name for path in (run / "checkpoints").iterdir()}
    head = lines[0].split()
    assert head[:3] == ["step", "epoch", "tags"]
    assert re.match(
        r"24 +4\.20 +(?:best, )?final +(\d+\.\d{4} +)?\d+\.\d [KM]iB +\d\d-\d\d \d\d:\d\d +1 +yes$", lines[1]
    )
    validated = "\n".join(lines)
    total = store_of(run).manifest(store_of(run).names()[-1]).values.history.validations[-1].losses.total
    assert f"{total:.4f}" in validated
    assert f"{run}/checkpoints/" in "".join(line.strip() for line in lines[-3:])


def test_a_status_is_whole_on_a_small_terminal(
    world: World, tmp_path: Path, small_terminal: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1234500")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    folder = tmp_path / "run"
    assert attempt(config_for(world, folder, schedule__max_steps=8)).code == 0
    assert attempt(config_for(world, folder, schedule__max_steps=12, resume__accept=["schedule.max_steps"])).code == 0
    record = json.loads((folder / "attempts/0002.json").read_bytes())
    record |= {"node": "gpu-node-0042.cluster.example.com", "device": "8 x NVIDIA H100 80GB HBM3"}
    (folder / "attempts/0002.json").write_text(json.dumps(record))
    lines = small_terminal("status", str(folder))
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    for word in ("state complete", "step 12 of 12 (100%)", "8 … 12", "complete (0)"):
        assert word in text
    for word in ("gpu-node-0042.cluster.example.com", "8 x NVIDIA H100 80GB HBM3", "slurm 1234500_17, restart 3"):
        assert word in text


def test_what_a_record_says_moves_no_cursor(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    (copy / "attempts").mkdir(parents=True)
    record = json.loads((run / "attempts/0001.json").read_bytes())
    record |= {"node": "\x1b[2J[bold]node[/bold]", "device": "a\rerror: forged", "previous_end": "\x1b]0;x\x07"}
    record["scheduler"] = {"kind": "slurm", "chain": "\u202e7"}
    (copy / "attempts/0001.json").write_text(json.dumps(record))
    assert main(["status", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", shown)
    assert "[bold]node[/bold]" in shown


def test_what_a_checkpoint_records_moves_no_cursor_and_shows_no_secret(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    name = "a\u009b2J\u202e https://me:hunter2@host"
    assert attempt(config_for(world, folder, report__run_name="a", schedule__max_steps=4)).code == 0
    (path,) = (folder / "checkpoints").iterdir()
    manifest = parse_manifest(path.read_bytes(), path.name)
    config = {**manifest.values.config, "report": {"run_name": name}}
    path.write_bytes(replace(manifest, values=replace(manifest.values, config=config)).to_json())
    for how in ([], ["--json"]):
        assert main(["checkpoints", "inspect", str(folder), *how]) == 0
        shown = capsys.readouterr().out
        assert not re.search("[\u009b\u202e]", shown)
        assert "hunter2" not in shown


def test_status_gives_programs_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["standing"]
    assert (found["state"], found["exit_code"], found["step"], found["total_steps"]) == ("complete", 0, 24, 24)
    assert found["epoch"] == pytest.approx(24 * 7 / 40)
    assert 0 < found["goodput"] < 1
    assert found["losses"].keys() >= {"text_loss", "mel_loss", "mel_top1", "total"}


def test_an_attempt_whose_process_is_gone_was_killed(
    world: World, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    (copy / "attempts").mkdir(parents=True)
    record = json.loads((run / "attempts/0001.json").read_bytes())
    assert record["pid_namespace"] == pid_namespace()
    child = os.fork()
    if child == 0:
        signal.pause()
    (copy / "attempts/0001.json").write_text(json.dumps({**record, "pid": child}))

    def state() -> str:
        assert main(["status", str(copy), "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["standing"]["state"])

    assert state() == "training"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert state() == "killed"
    assert main(["status", str(copy)]) == 0
    assert "killed: its process is gone" in capsys.readouterr().out


def test_a_problem_report_has_the_command_line_and_the_version(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report.json"
    assert main(["doctor", "report", str(run), "--output", str(output)]) == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["attempts"][0]["command"]
    assert document["versions"]["indextts_job"] == program_version()
    assert document["standing"]["step"] == 24


def test_findings_that_end_nothing_have_no_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "gpu", "--json"])
    for finding in json.loads(capsys.readouterr().out):
        assert (finding["exit_code"] is None) == (finding["level"] != "error")


# ---- storage settings


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("storage.endpoint=http://x", "storage.endpoint_url"),
        ("storage.retry_seconds=soon", "storage.retry_seconds"),
        ("storage.retry_seconds=.nan", "storage.retry_seconds"),
        ("storage.retry_seconds=-1", "storage.retry_seconds"),
        ("storage.endpoint_url=nonsense", "http://127.0.0.1:9000"),
    ],
)
def test_a_wrong_storage_setting_is_named(
    run: Path, setting: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status", str(run)], ["checkpoints", "list", str(run)], ["simulate", str(run)]):
        assert main([*command, setting]) == 78
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "RUN", "--intervals", "0"], "whole number of at least 1"),
        (["simulate", "--steps", "5", "--step-seconds", "-1"], "expected"),
        (["simulate", "--steps", "5", "--step-seconds", "nan"], "expected a number"),
        (["simulate", "--steps", "five"], "whole number"),
        (["status", "RUN", "--watch", "0"], "at least 1"),
        (["checkpoints", "compare", "RUN", "--max-samples", "-3"], "expected"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(
    run: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run) if word == "RUN" else word for word in arguments]) == 78
    assert words in capsys.readouterr().err


def test_a_wrong_configuration_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    assert main(["status", str(run), "--config", str(path)]) == 78
    assert "run configuration not found" in capsys.readouterr().err
    path.write_text("storagee: {}\n")
    assert main(["status", str(run), "--config", str(path)]) == 78
    assert "unknown key storagee" in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"storage": {"retry_seconds": 3}}))
    assert main(["status", str(run), "--config", str(path)]) == 0


@pytest.mark.parametrize(
    "record",
    [b"garbage", b'{"started": "2026-01-01"}', b'{"launched": "2026-01-01T00:00:00+00:00", "started": "yesterday"}'],
    ids=["nothing", "a time without offset", "no time"],
)
def test_a_damaged_record_without_a_journal_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: bytes
) -> None:
    run = tmp_path / "run"
    (run / "attempts").mkdir(parents=True)
    (run / "attempts/0001.json").write_bytes(record)
    page, report = tmp_path / "run.html", tmp_path / "report.json"
    looks = (["status", str(run)], ["status", str(run), "--json"], ["status", str(run), "--html", str(page)])
    for arguments in (*looks, ["doctor", "report", str(run), "--output", str(report)]):
        assert main(arguments) == 0, capsys.readouterr().err
    assert "silent: last heard of" in page.read_text(encoding="utf-8")
    assert kills(attempts(LocalStorage(str(run))))[0] <= 1  # what automatic saves ask for in a training
