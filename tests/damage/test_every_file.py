"""Any one file of a run, damaged in any way: the next attempt ends with the same weights, or says what it needs.

The cases are every file of a real run's own listing with every kind of damage, so the suite stays complete when a run
gets another file. A third of them runs each time, chosen by the commit; DAMAGE=all runs all of them.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from indextts_job.checkpoint.retention import FINAL
from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, samples, state_of, store_of
from tests.support.warm_parent import REPOSITORY, Interruption, WarmParent

KEYS: dict[str, object] = {
    "schedule__max_steps": 10,
    "checkpoint__interval_steps": 2,
    "validation__interval_steps": 4,
    "validation__max_samples": 4,
}
NOBODY = 65534
KNOWN_CODES = (65, 69, 77, 78)


def overwritten(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def void(_result: object) -> None:
    """For a function that has to return nothing."""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def unreadable(path: Path) -> None:
    path.chmod(0)
    if os.geteuid() == 0:
        os.chown(path, 0, 0)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "emptied": overwritten(b""),
    "cut": cut,
    "flipped": flip,
    "null": overwritten(b"null"),
    "list": overwritten(b"[]"),
    "garbage": overwritten(b'\x00\xff{"step": []}\n' * 50),
    "deep": overwritten(b"[" * 100_000),
    "folder": folder,
    "dangling link": dangling,
    "unreadable": unreadable,
}


@contextmanager
def as_another_user(*folders: Path) -> Iterator[None]:
    """Root reads everything; this process does not, as long as this lasts."""
    if os.geteuid() != 0:
        yield
        return
    passable = {parent for folder in folders for parent in folder.parents if parent.is_relative_to("/tmp")}  # noqa: S108
    before = {path: path.stat().st_mode for path in passable}
    for path in passable:
        path.chmod(before[path] | 0o055)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in before.items():
            path.chmod(mode)


class Interrupted:
    """A run of two attempts, stopped in the middle, and how it ends when nothing is damaged."""

    def __init__(self, world: World, folder: Path, warm_parent: WarmParent) -> None:
        self.world = world
        self.run = folder / "run"
        config = config_for(world, self.run, **KEYS)
        for _ in range(2):
            ended = warm_parent.attempt(config, folder / "log", Interruption(signal.SIGTERM, 24))
            assert ended.code == 75
        whole = folder / "whole"
        assert attempt(config_for(world, whole, **KEYS)).code == 0
        self.expected = state_of(newest(whole))
        self.samples = samples(whole)

    def files(self) -> list[Path]:
        return sorted(path.relative_to(self.run) for path in self.run.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def interrupted(world: World, tmp_path_factory: pytest.TempPathFactory, warm_parent: WarmParent) -> Interrupted:
    return Interrupted(world, tmp_path_factory.mktemp("damage"), warm_parent)


def chosen(cases: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """A third of the cases, another one after every commit; all of them on request."""
    if os.environ.get("DAMAGE") == "all":
        return cases
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    third = int(commit.stdout[:6] or "0", 16) % 3
    return [case for number, case in enumerate(cases) if number % 3 == third]


def test_the_next_attempt_ends_with_the_same_weights_or_says_what_it_needs(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    files = interrupted.files()
    kinds = {str(path).split("/")[0] for path in files}
    assert {"attempts", "checkpoints", "events", "logs", "objects", "samples", "summary.json"} <= kinds
    wrong = []
    for number, (path, kind) in enumerate(chosen([(path, kind) for path in files for kind in DAMAGES])):
        run = tmp_path / f"run-{number}"
        shutil.copytree(interrupted.run, run, symlinks=True)
        if kind == "unreadable" and os.geteuid() == 0:
            for part in (run, *run.rglob("*")):
                os.chown(part, NOBODY, NOBODY)
        DAMAGES[kind](run / path)
        with as_another_user(run, interrupted.world.train_manifest) if kind == "unreadable" else nullcontext():
            ended = attempt(config_for(interrupted.world, run, **KEYS))
        if problem := judged(interrupted, run, ended.code, ended.error):
            wrong.append(f"{path}, {kind}: {problem}")
        shutil.rmtree(run)
    assert not wrong, "\n".join(wrong)


def judged(interrupted: Interrupted, run: Path, code: int, error: str) -> str:
    """What is wrong with the end of an attempt; empty if nothing is."""
    if code != 0:
        return "" if code in KNOWN_CODES and error else f"exit code {code}: {error}"
    last = newest(run)
    if FINAL not in last.name.tags:
        return f"complete without a final checkpoint: {last.name}"
    store_of(run).verify(last)
    if state_of(last) != interrupted.expected:
        return "other weights"
    return ""


def test_what_needs_a_person_is_rare(interrupted: Interrupted, tmp_path: Path) -> None:
    """Most damage costs steps only. A run stops for a person where something it needs cannot be read by anybody."""
    stopped = []
    for path in interrupted.files():
        run = tmp_path / "run"
        shutil.copytree(interrupted.run, run)
        flip(run / path)
        if attempt(config_for(interrupted.world, run, **KEYS)).code != 0:
            stopped.append(str(path))
        shutil.rmtree(run)
    assert stopped == []


@pytest.mark.parametrize("folder", ["attempts", "checkpoints", "events", "logs", "objects", "samples"])
def test_a_file_in_place_of_a_folder_is_named(interrupted: Interrupted, tmp_path: Path, folder: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted.run, run)
    shutil.rmtree(run / folder)
    (run / folder).write_text("a file")
    ended = attempt(config_for(interrupted.world, run, **KEYS))
    assert ended.code in KNOWN_CODES
    assert folder in ended.error
