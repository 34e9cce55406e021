"""SIGTERM while a checkpoint is on its way to the bucket: a real process, a line that holds the upload up."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from indextts_job.demo.world import World
from tests.s3.conftest import Connect
from tests.support.attempts import attempt
from tests.support.fault_proxy import HeldLine, proxy
from tests.support.runs import config_for, newest, store_of
from tests.support.servers import Server

KEYS = {"schedule__max_steps": 4000, "checkpoint__interval_steps": 4, "data__validation_manifests": []}


@contextmanager
def training(world: World, run: str, grace_s: float, line: HeldLine, folder: Path) -> Iterator[subprocess.Popen[str]]:
    config = config_for(world, run, preemption__grace_seconds=grace_s, storage__retry_seconds=60, **KEYS)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
    command = [sys.executable, "-m", "indextts_job", "train", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert line.uploading.wait(120)
            yield process
        finally:
            line.let_go.set()
            process.kill()


def until(process: subprocess.Popen[str], words: str) -> str:
    """What is printed until a line with these words."""
    assert process.stdout
    seen = ""
    for printed in process.stdout:
        seen += printed
        if words in printed:
            return seen
    raise AssertionError(f"never printed {words!r}: {seen}")


def test_with_thirty_seconds_left_the_newest_state_is_committed(
    world: World, s3_run: str, seaweed: Server, tmp_path: Path, connect: Connect
) -> None:
    line = HeldLine()
    with proxy(seaweed.port, line) as (url, _faults):
        connect(url)
        with training(world, s3_run, 30.0, line, tmp_path) as process:
            process.send_signal(signal.SIGTERM)
            seen = until(process, "which is under way")
            line.let_go.set()
            rest, _ = process.communicate()
    assert process.returncode == 75, seen + rest
    assert "given up for that of this step" in seen
    connect(seaweed.url)
    assert "preempted" in newest(s3_run).name.tags
    store_of(s3_run).verify(newest(s3_run))


def test_with_two_seconds_left_the_last_checkpoint_stands(
    world: World, s3_run: str, seaweed: Server, tmp_path: Path, connect: Connect
) -> None:
    line = HeldLine(slow_s=2.0)
    with proxy(seaweed.port, line) as (url, _faults):
        connect(url)
        with training(world, s3_run, 2.0, line, tmp_path) as process:
            before = store_of(s3_run).names()
            process.send_signal(signal.SIGTERM)
            seen = until(process, "which is under way")
            # The kill would come two seconds after the signal; it is not waited for.
            rest, _ = process.communicate(timeout=20)
            assert process.returncode == 75, rest
            assert "the last save was not done in it" in rest
    assert "the last committed checkpoint stands" in seen
    connect(seaweed.url)
    assert store_of(s3_run).names() == before
    assert newest(s3_run).name.step == 4
    ended = attempt(
        config_for(world, s3_run, **{**KEYS, "schedule__max_steps": 12}, resume__accept=["schedule.max_steps"])
    )
    assert ended.code == 0, ended.error
    assert "step 4 of 12" in ended.output
