"""Release and commit, from wherever they can be known."""

import subprocess
from pathlib import Path

import pytest

from indextts_job.cli import main
from indextts_job.version import commit, program_version


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "indextts_job"
    folder.mkdir()
    return folder


def test_an_image_names_the_commit_that_it_was_built_from(package: Path) -> None:
    assert commit(package) == ""
    (package / "REVISION").write_text("74b318b3a0c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5\n")
    assert commit(package) == "74b318b3a0c1"
    assert program_version(package).endswith(" (commit 74b318b3a0c1)")
    (package / "REVISION").write_text("unknown\n")
    assert commit(package) == ""


def test_a_checkout_names_its_commit_and_whether_it_is_changed(package: Path) -> None:
    root = package.parent

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (root / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    assert commit(package) == ""  # somebody else's repository, in which this package is installed
    (root / "pyproject.toml").touch()
    assert commit(package) == git("rev-parse", "--short=12", "HEAD")
    (root / "file").write_text("2")
    assert commit(package).endswith(", with changes")


def test_the_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"indextts-job {program_version()}"


def test_a_flag_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status", "--js", "run"], ["checkpoints", "list", "--verif", "run"], ["train", "--grace", "5"]):
        assert main(arguments) == 78
        assert "error: " in capsys.readouterr().err
