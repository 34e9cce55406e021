"""Runs on several processes: started, looked at, compared."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch
import yaml

from indextts_job.checkpoint.tensor_names import WEIGHTS
from indextts_job.demo.world import World
from tests.support.runs import config_for, newest, samples, store_of
from tests.support.warm_parent import REPOSITORY

KEYS: dict[str, object] = {"recipe__dropout": 0.0, "schedule__max_steps": 40, "schedule__epochs": 100}


def started(
    world: World, run: Path, count: int, environment: dict[str, str] | None = None, **keys: object
) -> "subprocess.Popen[str]":
    config = run.with_name(f"{run.name}-{count}.yaml")
    document = config_for(world, run, hardware__processes=count, **{**KEYS, **keys}).to_json()
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [sys.executable, "-m", "indextts_job", "train", str(config), "--grace-seconds", "60"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY, env=own
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def pid_of_rank(process: "subprocess.Popen[str]", rank: int) -> int:
    """The process of a rank, found among the children."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(OSError):  # a child that has ended since it was listed
            if f"RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes().replace(b"LOCAL_RANK", b""):
                return int(child)
    raise LookupError(f"no rank {rank}")


def trained(run: Path, attempt_number: int) -> bool:
    path = run / f"samples/attempt-{attempt_number:04d}.jsonl"
    return path.exists() and len(path.read_text(encoding="utf-8").splitlines()) > 3


def weights(run: Path) -> torch.Tensor:
    tensors = store_of(run).load(newest(run), (WEIGHTS,))
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def same_samples(one: Path, other: Path) -> bool:
    def sets(run: Path) -> dict[int, list[str]]:
        return {step: sorted(ids) for step, ids in samples(run).items()}

    return sets(one) == sets(other)
