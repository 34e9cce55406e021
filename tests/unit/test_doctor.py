"""What the doctor finds on this machine, and on worse ones."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from indextts_job.cli import main
from indextts_job.doctor import machine
from indextts_job.doctor.distributions import histogram
from indextts_job.doctor.findings import Finding, exit_code
from indextts_job.hardware import facts
from indextts_job.hardware.facts import memory_limit_bytes
from indextts_job.storage.config import StorageConfig

GIB = 2**30


def examined(run: str = "") -> dict[str, Finding]:
    return {finding.subject: finding for finding in machine.examine(run)}


def test_a_machine_without_a_gpu_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for cuda, driver, advice in (
        (None, "", "CPU build"),
        ("13.0", "", "--gpus all"),
        ("13.0", "535.1", "too old"),
    ):
        monkeypatch.setattr("torch.version.cuda", cuda)
        monkeypatch.setattr(facts, "driver_version", lambda driver=driver: driver)
        found = examined()["GPU"]
        assert found.level == "error"
        assert advice in found.advice
    assert exit_code([found]) == 78


def test_small_machines_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(total=64 * 2**20, free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 1)
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 4 * GIB)
    found = examined()
    levels = {subject: finding.level for subject, finding in found.items() if subject != "GPU"}
    assert levels == dict.fromkeys(("CPUs", "memory", "shared memory", "scratch space"), "warning")
    assert found["shared memory"].found == "64.0 MiB"
    assert all(finding.advice for finding in found.values())


def test_a_read_only_temporary_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object, **_named: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = examined()["scratch space"]
    assert found.level == "error"
    assert "Read-only file system" in found.found


@pytest.mark.parametrize(("content", "limit"), [("max", None), ("1073741824", GIB), ("99999999999999999", None)])
def test_memory_is_that_of_the_container(tmp_path: Path, content: str, limit: int | None) -> None:
    installed = memory_limit_bytes(tmp_path / "missing")
    (tmp_path / "memory.max").write_text(f"{content}\n")
    assert memory_limit_bytes(tmp_path) == (limit or installed)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("2147483648\n")
    assert memory_limit_bytes(tmp_path) == 2 * GIB


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "gpu", str(tmp_path / "run"), "--json"])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    levels = {row["subject"]: row["level"] for row in rows}
    assert levels["storage"] == levels["conditional writes"] == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    code = main(["doctor", "gpu", str(tmp_path / "file")])
    shown = capsys.readouterr().out
    assert code == 78
    assert "error   storage" in shown


def test_a_look_at_the_storage_leaves_folders_as_they_were(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for run in (empty, tmp_path / "a/b/c"):
        assert {finding.level for finding in machine._storage(str(run), StorageConfig())} == {"ok"}
    assert list(tmp_path.iterdir()) == [empty]
    assert list(empty.iterdir()) == []


def test_a_distribution_has_rows_that_people_count_in() -> None:
    rows = histogram([2.0, 3.0, 3.0, 6.0], "tokens", 1)
    assert [row.split()[0] for row in rows] == ["2", "3", "4", "5", "6"]
    assert [row.split()[-1] for row in rows] == ["1", "2", "0", "0", "1"]
    assert rows[1].count("█") == 2 * rows[0].count("█") == 40
    assert len(histogram([5.0], "s")) == 1
