"""The walks of ARCHITECTURE.md, followed: which files of the package are on the stack when the effect happens.

A walk goes on in the threads that it starts, so the stack of whoever started a thread or handed it work counts too.
"""

import functools
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from indextts_job.preemption import deadline
from tests.support.runs import config_for

REPOSITORY = Path(__file__).parents[2]
MOST_FILES = 8
_LINK = re.compile(r"\]\((indextts_job/[a-z_/]+\.py)\)")


def documented(walk: str) -> list[str]:
    """The files of a walk, in the order in which ARCHITECTURE.md names them."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition(f"**{walk}")[2].partition("\n\n")[0]
    return _LINK.findall(section)


class Tracer:
    """Remembers, for every thread and every task of a pool, the stack that it was begun with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._local = threading.local()
        self.seen: dict[str, list[str]] = {}
        """Files of the first stack of each effect, from the command inwards."""
        start, submit = threading.Thread.start, ThreadPoolExecutor.submit

        def started(thread: threading.Thread) -> None:
            thread.run = functools.partial(self._inherited, self.stack(), thread.run)  # type: ignore[method-assign]
            start(thread)

        def submitted(pool: Any, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            return submit(pool, functools.partial(self._inherited, self.stack(), work), *arguments, **named)

        patch.setattr(threading.Thread, "start", started)
        patch.setattr(ThreadPoolExecutor, "submit", submitted)

    def _inherited(self, stack: list[str], work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        before = getattr(self._local, "stack", [])
        self._local.stack = stack
        try:
            return work(*arguments, **named)
        finally:
            self._local.stack = before

    def stack(self) -> list[str]:
        frames = (Path(frame.filename) for frame in traceback.extract_stack())
        package = [str(path.relative_to(REPOSITORY)) for path in frames if path.is_relative_to(REPOSITORY)]
        own = [path for path in package if path.startswith("indextts_job/")]
        return list(dict.fromkeys([*getattr(self._local, "stack", []), *own]))

    def note(self, effect: str) -> None:
        self.seen.setdefault(effect, self.stack())


@pytest.fixture(scope="module")
def tracer(world: World, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    """A run that a signal stops in its fifth step, and that then goes on; its manifest lies in a bucket."""
    folder = tmp_path_factory.mktemp("walks")
    bucket = fsspec.filesystem("memory")
    for path in world.folder.rglob("*"):
        if path.is_file():
            bucket.pipe_file(f"/walks/{path.relative_to(world.folder)}", path.read_bytes())
    config = config_for(
        world,
        folder / "run",
        data__train_manifests=["memory://walks/processed/gpt_pairs_train.jsonl::am"],
        schedule__max_steps=8,
    )
    run = folder / "run.yaml"
    run.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch:
        tracer = Tracer(patch)
        watch(patch, tracer)
        assert main(["train", str(run)]) == EXIT_STOPPED
        assert main(["train", str(run)]) == EXIT_OK
    for number, handler in handlers.items():
        signal.signal(number, handler)
    bucket.rm("/walks", recursive=True)
    return tracer


def watch(patch: pytest.MonkeyPatch, tracer: Tracer) -> None:
    """Note the stack where an effect happens; within the fifth step, ask for a stop."""
    watch_steps(patch, tracer)
    watch_files(patch, tracer)
    in_time, cat = deadline.finishes_in_time, MemoryFileSystem.cat_file

    def asked(*given: Any) -> bool:
        tracer.note("decision")
        return in_time(*given)

    def fetched(filesystem: Any, path: str, *given: Any, **named: Any) -> Any:
        if path.endswith(".jsonl"):
            tracer.note("url")
        return cat(filesystem, path, *given, **named)

    patch.setattr(deadline, "finishes_in_time", asked)
    patch.setattr(MemoryFileSystem, "cat_file", fetched)


def watch_steps(patch: pytest.MonkeyPatch, tracer: Tracer) -> None:
    attention, update = torch.nn.functional.scaled_dot_product_attention, torch.optim.AdamW.step
    updates: list[int] = []
    stopped: list[int] = []

    def attended(*given: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            tracer.note("step")
            if len(updates) == 4 and not stopped:
                stopped.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
        return attention(*given, **named)

    def updated(*given: Any, **named: Any) -> Any:
        updates.append(1)
        return update(*given, **named)

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attended)
    patch.setattr(torch.optim.AdamW, "step", updated)


def watch_files(patch: pytest.MonkeyPatch, tracer: Tracer) -> None:
    replace, from_file = Path.replace, np.fromfile

    def replaced(path: Path, target: Path) -> Any:
        if "objects" in target.parts:
            tracer.note("objects")
        if "checkpoints" in target.parts:
            tracer.note("save")
        if target.name.endswith("-preempted.json"):
            tracer.note("preemption")
        return replace(path, target)

    def read(path: Path, *given: Any, **named: Any) -> Any:
        if "objects" in Path(path).parts:
            tracer.note("load")
        return from_file(path, *given, **named)

    patch.setattr(Path, "replace", replaced)
    patch.setattr(np, "fromfile", read)


@pytest.mark.parametrize(
    ("walk", "effect"), [("One step", "step"), ("One save", "save"), ("One load", "load"), ("One URL to bytes", "url")]
)
def test_a_walk_passes_the_files_that_it_names_and_no_others(tracer: Tracer, walk: str, effect: str) -> None:
    passed = tracer.seen[effect]
    assert passed[0] == "indextts_job/cli.py"  # which every command passes
    assert documented(walk) == passed[1:]
    assert len(passed) - 1 <= MOST_FILES


def test_the_objects_of_a_save_pass_the_files_that_it_names(tracer: Tracer) -> None:
    passed = tracer.seen["objects"]
    assert documented("Its objects") == passed[passed.index("indextts_job/loop/background_saver.py") :]


def test_a_preemption_passes_the_files_that_it_names(tracer: Tracer) -> None:
    """The handler only stores; the step asks; the loop leaves and saves, which goes on as one save does."""
    begin = "indextts_job/loop/loop.py"
    asks, saves = (stack[stack.index(begin) :] for stack in (tracer.seen["decision"], tracer.seen["preemption"]))
    saves = saves[: saves.index("indextts_job/loop/background_saver.py") + 1]
    named = documented("One preemption")
    assert set(named) == {*asks, *saves, "indextts_job/preemption/signals.py", "indextts_job/cli.py"}
    assert len(named) <= MOST_FILES
