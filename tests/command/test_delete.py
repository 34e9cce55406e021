"""`checkpoints delete`: what it removes, what it leaves, and when it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from indextts_job.checkpoint.describe import SCHEMA, summarise_again
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.cli import main
from indextts_job.config import ResumeConfig
from indextts_job.demo.world import World
from indextts_job.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED
from indextts_job.resume.select import select
from indextts_job.storage.local_storage import LocalStorage
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, store_of


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    keys = {"schedule__max_steps": 8, "checkpoint__interval_steps": 3, "checkpoint__keep": 5}
    assert attempt(config_for(world, run, report__run_name="am/first", **keys)).code == EXIT_OK
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs/amharic")
    return tmp_path / "runs/amharic"


def manifest_of(run: Path, step: int) -> Path:
    (name,) = (name for name in store_of(run).names() if name.step == step)
    return run / "checkpoints" / file_name(name)


def test_one_checkpoint_goes_with_what_no_other_needs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set((run / "objects").iterdir())
    assert main(["checkpoints", "delete", str(manifest_of(run, 3))]) == EXIT_CONFIG
    assert "Nothing is deleted without --yes" in capsys.readouterr().err
    assert set((run / "objects").iterdir()) == before
    assert main(["checkpoints", "delete", str(manifest_of(run, 3)), "--yes"]) == EXIT_OK
    left = {name.step for name in store_of(run).names()}
    assert 3 not in left
    assert {6, 8} <= left
    assert set((run / "objects").iterdir()) < before
    for name in store_of(run).names():
        store_of(run).verify(store_of(run).manifest(name))


def test_the_summary_names_what_is_there(run: Path) -> None:
    def summary() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((run / "summary.json").read_text())
        assert {row["name"] for row in found.get("checkpoints", [])} == {
            path.name for path in (run / "checkpoints").iterdir()
        }
        return found

    assert summary()["best_checkpoint"] == manifest_of(run, 8).name
    assert main(["checkpoints", "keep", str(manifest_of(run, 8))]) == EXIT_OK
    assert summary()["best_checkpoint"] == manifest_of(run, 8).name
    assert "keep" in manifest_of(run, 8).name
    assert main(["checkpoints", "delete", str(manifest_of(run, 8)), "--yes"]) == EXIT_OK
    found = summary()
    assert (found["step"], found["complete"]) == (6, False)
    assert found["best_checkpoint"] == manifest_of(run, found["best_validation"]["step"]).name
    for path in sorted((run / "checkpoints").iterdir()):
        assert main(["checkpoints", "delete", str(path), "--yes"]) == EXIT_OK
    assert summary() == {"schema": SCHEMA, "checkpoints": []}
    # The run begins anew, as the question has said.
    assert begins_anew(run)


def begins_anew(run: Path) -> bool:
    return select(ResumeConfig(), store_of(run)).point is None


def test_what_is_deleted_is_deleted_although_another_checkpoint_is_damaged(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest_of(run, 8).write_text('{"broken')
    assert main(["checkpoints", "delete", str(manifest_of(run, 3)), "--yes"]) == EXIT_OK
    shown = capsys.readouterr()
    assert "deleted " in shown.out
    assert 3 not in {name.step for name in store_of(run).names()}
    assert "8" in (run / "summary.json").read_text()


def test_a_summary_that_cannot_be_written_is_a_warning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").unlink()
    (run / "summary.json").mkdir()
    (run / "summary.json/mine").touch()
    assert main(["checkpoints", "keep", str(manifest_of(run, 3))]) == EXIT_OK
    shown = capsys.readouterr()
    assert "kept as" in shown.out
    assert "warning: summary.json was not written again" in shown.err


def test_a_summary_has_what_a_training_commits_while_it_is_written(run: Path) -> None:
    store = store_of(run)
    late = manifest_of(run, 8)
    content = late.read_bytes()
    late.unlink()

    class Committing(LocalStorage):
        """Commits a checkpoint between the listing and the write of the first summary."""

        def write(self, key: str, written: Any) -> None:
            if not late.exists():
                late.write_bytes(content)
            super().write(key, written)

    summarise_again(CheckpointStore(Committing(store.storage.url)))
    assert json.loads((run / "summary.json").read_text())["step"] == 8


@pytest.mark.parametrize(("answer", "code"), [("y", EXIT_OK), ("n", EXIT_CONFIG), ("", EXIT_CONFIG)])
def test_on_a_terminal_it_asks(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, code: int
) -> None:
    asked: list[str] = []

    def answered(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answered)
    assert main(["checkpoints", "delete", str(manifest_of(run, 8))]) == code
    assert "the checkpoint of step 8 (best, final)" in asked[0]
    assert "the run goes on from step 6" in asked[0]
    assert (8 in {name.step for name in store_of(run).names()}) is (code != EXIT_OK)


def test_a_whole_run_goes_and_what_somebody_else_put_there_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "notes.txt").write_text("mine")
    assert main(["checkpoints", "delete", str(run), "--yes"]) == EXIT_OK
    assert "left, not written by this program: notes.txt" in capsys.readouterr().out
    assert [path.name for path in run.rglob("*")] == ["notes.txt"]
    (run / "notes.txt").unlink()
    shutil.copytree(run, run.with_name("empty"))
    assert main(["checkpoints", "delete", str(run), "--yes"]) == EXIT_CONFIG
    assert "is no run" in capsys.readouterr().err


def test_a_run_without_anything_else_is_gone(run: Path) -> None:
    assert main(["checkpoints", "delete", str(run), "--yes"]) == EXIT_OK
    assert not run.exists()


def test_what_another_run_is_about_to_start_from_is_refused(
    world: World, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run.with_name("other")
    keys = {"resume__source": str(run), "resume__weights_only": True, "checkpoint__interval_steps": 0}
    assert attempt(config_for(world, other, **keys), 1).code == EXIT_STOPPED
    for path in (other / "checkpoints").iterdir():
        path.unlink()  # as if it had been killed before its first one
    assert main(["checkpoints", "delete", str(run), "--yes"]) == EXIT_CONFIG
    assert "has no checkpoint of its own yet" in capsys.readouterr().err
    assert newest(run)
    shutil.rmtree(other)
    assert main(["checkpoints", "delete", str(run), "--yes"]) == EXIT_OK
