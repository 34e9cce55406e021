"""From the start of the process to the first optimizer step, everything in a bucket, on a bare and on a warm node.

Starts SeaweedFS on loopback. `bare` has an empty cache folder; `fresh` starts from the base checkpoint, `resume` from a
checkpoint in the bucket. The operating system's page cache stays warm: a node that has never imported torch takes
longer. Rival: what has to happen one after another at least, the import of torch and one read of the bytes.

    python -m bench.startup [--rounds 3]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import yaml

from bench.data import upload
from indextts_job.data.dataset import Limits
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.model.config import gpt_config
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.files import read_yaml
from tests.support.servers import client_environment, running, seaweedfs

SAMPLES, WIDTH, LAYERS = 1000, 1280, 2


def configuration(folder: Path, cache: Path, steps: int) -> Path:
    """A run whose every input is a URL."""
    document = {
        "run": "s3://bucket/run",
        "inputs": {
            "model_config": "s3://bucket/world/checkpoints/config.yaml",
            "base_checkpoint": "s3://bucket/world/checkpoints/gpt.pth",
            "tokenizer": "s3://bucket/world/tokenizers/extended_bpe.model",
        },
        "data": {"train_manifests": ["s3://bucket/shards"], "cache_folder": str(cache)},
        "recipe": {"global_batch_samples": 2},
        "schedule": {"max_steps": steps},
        "report": {"log_interval_steps": 1},
        "resume": {"accept": ["schedule.max_steps"]},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def first_step(path: Path) -> tuple[float, str]:
    """Seconds until the line of the first step is printed, and the trainer's own account of its start."""
    started_s = time.perf_counter()
    command = [sys.executable, "-m", "indextts_job", "train", str(path)]
    account, seconds = "", 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout  # noqa: S101
        for line in process.stdout:
            if line.startswith("start-up"):
                account = line.removeprefix("start-up").strip()
            if line.startswith("train") and not seconds:
                seconds = time.perf_counter() - started_s
    if process.returncode or not seconds:
        raise RuntimeError(f"the trainer ended with {process.returncode}")
    return seconds, account


def at_least() -> float:
    """Import of torch in a process of its own, then one read of the base checkpoint."""
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    files.read_bytes("s3://bucket/world/checkpoints/gpt.pth")
    return time.perf_counter() - started_s


def main() -> None:
    """Print one row per kind of start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
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
    found: dict[str, list[tuple[float, str]]] = {}
    floor = []
    for turn in range(rounds):
        if filesystem.exists("bucket/run"):
            filesystem.rm("bucket/run", recursive=True)
        floor.append(at_least())
        bare, other = folder / f"cache-{turn}", folder / f"other-{turn}"
        found.setdefault("fresh, bare node", []).append(first_step(configuration(folder, bare, 1)))
        found.setdefault("resume, warm node", []).append(first_step(configuration(folder, bare, 2)))
        found.setdefault("resume, bare node", []).append(first_step(configuration(folder, other, 3)))
    least = statistics.median(floor)
    print(f"{SAMPLES} samples, base checkpoint of {size / 2**20:.0f} MiB; import of torch and one read: {least:.1f} s")
    for name, taken in found.items():
        seconds = statistics.median(second for second, _ in taken)
        print(f"{name:<20}{seconds:>6.1f} s, {seconds / least:.2f} of that; {taken[-1][1]}")


if __name__ == "__main__":
    main()
