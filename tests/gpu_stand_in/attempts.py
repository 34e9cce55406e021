"""Attempts of the unchanged command in processes of the other environment."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from indextts_job.demo.world import World
from tests.gpu_stand_in.cards import ALL, USUAL
from tests.support.runs import config_for

if TYPE_CHECKING:
    import subprocess

FULL = os.environ.get("STAND_IN") == "all"
"""`make long` sets the variable: every card, and what takes long."""
CARDS = ALL if FULL else USUAL
TRAIN = ("-m", "indextts_job", "train")
LIMIT_S = 120


def written(world: World, run: Path, **keys: object) -> str:
    """The configuration of a run, as a file. The product chooses capacity and threads by itself.

    Blocks are not compiled: whether they would be is decided by times, which mean nothing here.

    Args:
        world: Its data.
        run: Its folder; the file is written beside it.
        keys: As those of `config_for`.
    """
    chosen: dict[str, object] = {
        "hardware__capacity_tokens": 0,
        "hardware__threads": 0,
        "hardware__compile": "never",
    }
    config = config_for(world, run, **(chosen | keys))
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
    return str(path)


def ended(child: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output of a process that ends by itself."""
    output, _ = child.communicate(timeout=LIMIT_S)
    return child.returncode, output


def wait_until_written(text: str, path: Path, child: "subprocess.Popen[str]") -> None:
    """Look until a file of a running process holds a text."""
    limit_s = time.monotonic() + LIMIT_S
    while not path.exists() or text not in path.read_text(encoding="utf-8"):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit_s, f"never in {path}: {text}"
        os.sched_yield()
