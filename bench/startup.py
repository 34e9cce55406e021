"""From the start of the process to the first optimizer step, everything in a bucket, on a bare and on a warm node.

Starts SeaweedFS on loopback. `bare` has an empty cache folder; `fresh` starts from the base checkpoint, `resume` from a
checkpoint that an attempt left when it was preempted. The operating system's page cache stays warm: a node that has
never imported torch takes longer. Rivals are what has to happen at least: the imports of the trainer, and one read of
the bytes of base or checkpoint, which can happen beside them. On two cores that are the server's too they hold each
other up, so both at once, in two processes, are measured as well: with the step itself that is the bound of a bare
start on this machine. Every attempt is stopped behind its first step.

    python -m bench.startup [--rounds 5]
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import yaml

from bench.data import upload
from bench.timing import fault_in
from indextts_job.data.dataset import Limits
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.errors import EXIT_STOPPED
from indextts_job.model.config import gpt_config
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.files import read_yaml
from tests.support.servers import client_environment, running, seaweedfs

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES, WIDTH, LAYERS = 1000, 1280, 2
BASE = "s3://bucket/world/checkpoints/gpt.pth"
IMPORTS = "import indextts_job.attempt.run, s3fs"
FREE_BYTES = 3 * 2**30
"""Memory that a start finds, and its server."""


def configuration(folder: Path, cache: Path) -> Path:
    """A run whose every input is a URL."""
    document = {
        "run": "s3://bucket/run",
        "inputs": {
            "model_config": "s3://bucket/world/checkpoints/config.yaml",
            "base_checkpoint": BASE,
            "tokenizer": "s3://bucket/world/tokenizers/extended_bpe.model",
        },
        "data": {"train_manifests": ["s3://bucket/shards"], "cache_folder": str(cache)},
        "recipe": {"global_batch_samples": 2},
        "schedule": {"max_steps": 100},
        "report": {"log_interval_steps": 1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Started:
    """One start."""

    seconds: float
    """From the start of the process until the line of the first step is printed."""
    step_s: float
    """Of that, the step itself."""
    account: str
    """The trainer's own account of its start."""


def first_step(path: Path) -> Started:
    """Start the trainer, and stop it behind its first step."""
    fault_in(FREE_BYTES)
    started_s = time.perf_counter()
    command = [sys.executable, "-m", "indextts_job", "train", str(path)]
    account, seconds, ready_s = "", 0.0, 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout  # noqa: S101
        for line in process.stdout:
            if line.startswith("start-up"):
                account, ready_s = line.removeprefix("start-up").strip(), time.perf_counter() - started_s
            if line.startswith("train") and not seconds:
                seconds = time.perf_counter() - started_s
                process.send_signal(signal.SIGTERM)
    if process.returncode != EXIT_STOPPED or not seconds:
        raise RuntimeError(f"the trainer ended with {process.returncode}")
    return Started(seconds, seconds - ready_s, account)


def imports() -> float:
    """What the trainer imports, in a process of its own."""
    fault_in(FREE_BYTES)
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started_s


def one_read() -> float:
    """One read of the base checkpoint to memory."""
    fault_in(FREE_BYTES)
    started_s = time.perf_counter()
    files.read_bytes(BASE)
    return time.perf_counter() - started_s


def imports_beside_read() -> float:
    """The imports, and one read of the base checkpoint in a process of its own at the same time."""
    read = (
        "from indextts_job.storage import files\nfrom indextts_job.storage.config import StorageConfig\n"
        f"files.configure_object_stores(StorageConfig())\nfiles.read_bytes({BASE!r})"
    )
    fault_in(FREE_BYTES)
    started_s = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", read]) as reading:
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        if reading.wait():
            raise RuntimeError("the read of the base checkpoint failed")
    return time.perf_counter() - started_s


def main() -> None:
    """Print one row per kind of start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, running(seaweedfs(Path(name) / "weed")) as server:
        os.environ.update(client_environment(server))
        files.configure_object_stores(StorageConfig())
        folder = Path(name)
        world = make_world(folder / "world", WorldSize(samples=SAMPLES, width=WIDTH, layers=LAYERS, heads=20))
        upload(world, "s3://bucket/world")
        _shard(world)
        size = world.base_checkpoint.stat().st_size
        measure(folder, given.rounds, size)


def _shard(world: World) -> None:
    limits = Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 268)
    dataset = load_dataset([str(world.train_manifest)], limits, skip_bad_samples=False)
    write_shards(dataset, "s3://bucket/shards", lambda _done, _total: None)


def measure(folder: Path, rounds: int, size: int) -> None:
    """Take turns, print medians and the last account."""
    filesystem = fsspec.filesystem("s3")
    found: dict[str, list[Started]] = {}
    least: dict[Callable[[], float], list[float]] = {imports: [], one_read: [], imports_beside_read: []}
    for turn in range(rounds):
        if filesystem.exists("bucket/run"):
            filesystem.rm("bucket/run", recursive=True)
        for rival, seconds in least.items():
            seconds.append(rival())
        bare, other = folder / f"cache-{turn}", folder / f"other-{turn}"
        found.setdefault("fresh, bare node", []).append(first_step(configuration(folder, bare)))
        found.setdefault("resume, warm node", []).append(first_step(configuration(folder, bare)))
        found.setdefault("resume, bare node", []).append(first_step(configuration(folder, other)))
    alone, read, both = (statistics.median(seconds) for seconds in least.values())
    print(
        f"{SAMPLES} samples, base checkpoint of {size / 2**20:.0f} MiB; imports {alone:.2f} s, one read of the base "
        f"{read:.2f} s, both at once {both:.2f} s"
    )
    print(
        f"{'':<20}{'first step':>12}{'/ max(imports, read)':>28}{'/ (both at once + step)':>28}"
        f"{'without the step / imports':>32}"
    )
    for name, starts in found.items():
        rows = list(zip(starts, *least.values(), strict=True))
        whole = [one.seconds / max(importing, reading) for one, importing, reading, _both in rows]
        bound = [one.seconds / (together + one.step_s) for one, _importing, _reading, together in rows]
        ready = [(one.seconds - one.step_s) / importing for one, importing, _reading, _both in rows]
        median_s = statistics.median(one.seconds for one in starts)
        print(
            f"{name:<20}{median_s:>10.2f} s{_spread(whole):>28}{_spread(bound):>28}{_spread(ready):>32}  "
            f"{starts[-1].account}"
        )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


if __name__ == "__main__":
    main()
