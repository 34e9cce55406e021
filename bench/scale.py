"""A dataset of a million samples: memory for each, seconds to open it, and seconds to the first step of a run.

The arrays are made up and their vectors narrow, so that everything fits on a disk; what a start reads does not depend
on their width. Every sample of the sharded dataset has arrays of its own; the plain one, which is a tenth as large, has
texts and codes of its own and ten samples for each prompt. Each row is a process of its own.

    python -m bench.scale [--samples 1000000] [--plain 100000]
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bench.startup import first_step
from indextts_job.data.dataset import USES, Arrays, Dataset, Limits, Owner, Part, Use
from indextts_job.data.remembered import WrittenLater
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.data.texts import Bytes, Texts
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.model.config import gpt_config
from indextts_job.model.versions import V2_0
from indextts_job.storage.files import read_yaml
from indextts_job.storage.local_storage import LocalStorage

WIDTH, PIECES, CODES = 8, 217, 128
PROMPTS = 10
"""Samples of the plain dataset for each prompt."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Arrays that are functions of the sample's number; their digests are random, which nobody compares here."""

    made: dict[Use, Bytes]

    def origin(self, index: int) -> str:
        """See `dataset.Source`."""
        return f"number {index}"

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        """See `dataset.Source`."""
        return self.made[use][start:stop]

    def largest(self, use: Use) -> int:
        """See `dataset.Source`."""
        return (PIECES if use == "text" else CODES) - 1

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        """See `dataset.Source`."""
        return [tuple(self.read_one(use, index, owner) for use in USES) for index in indices]  # type: ignore[misc]

    def read_one(self, use: Use, index: int, _owner: Owner) -> npt.NDArray[Any]:
        """See `dataset.Source`."""
        if use == "text":
            return np.full(text_length(index), 2 + index % (PIECES - 2), np.int32)
        if use == "codes":
            return np.full(code_length(index), index % CODES, np.int32)
        shape = V2_0.speaker_shape(WIDTH) if use == "condition" else (WIDTH,)
        return np.full(shape, index / 1e6, np.float32)


def text_length(number: Any) -> Any:  # noqa: ANN401  # a number or an array
    """Text ids of a sample."""
    return 5 + number % 16


def code_length(number: Any) -> Any:  # noqa: ANN401  # a number or an array
    """Codes of a sample."""
    return 10 + number % 31


def name_of(number: int) -> str:
    """An id of the length that preprocessing gives."""
    return f"speaker_{number % 60:03d}_{number:07d}__speaker_{number % 60:03d}_{number // 2:07d}"


def made_up(samples: int) -> Dataset:
    """A dataset of so many samples."""
    random = np.random.default_rng(0)
    numbers = np.arange(samples)
    part = Part(
        ids=Texts.of(map(name_of, range(samples))),
        languages=("am",),
        language=np.zeros(samples, np.int32),
        text_lengths=text_length(numbers).astype(np.int32),
        code_lengths=code_length(numbers).astype(np.int32),
        source=MadeUp({use: random.integers(0, 256, (samples, 16), np.uint8) for use in USES}),
    )
    return Dataset([part])


def write_plain(folder: Path, samples: int) -> Path:
    """A manifest with its arrays."""
    made = MadeUp({})
    for use in USES:
        (folder / use).mkdir(parents=True)
        for number in range(samples if use in ("text", "codes") else -(-samples // PROMPTS)):
            np.save(folder / use / f"speaker_{number:07d}.npy", made.read_one(use, number, str))
    with (folder / "m.jsonl").open("w") as file:
        for number in range(samples):
            target, prompt = f"speaker_{number:07d}.npy", f"speaker_{number // PROMPTS:07d}.npy"
            record = {
                "id": name_of(number),
                "prompt_condition_path": f"condition/{prompt}",
                "prompt_emo_vec_path": f"emotion/{prompt}",
                "target_text_ids_path": f"text/{target}",
                "target_codes_path": f"codes/{target}",
                "target_text_len": text_length(number),
                "target_code_len": code_length(number),
                "target_language": "am",
            }
            file.write(json.dumps(record) + "\n")
    return folder / "m.jsonl"


def status_bytes(key: str) -> int:
    """Memory of this process, as the kernel counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def opened(argument: str, model_config: str, run: str) -> None:
    """Open a dataset in this process, and print what it took."""
    limits = Limits(gpt_config(read_yaml(model_config, "", ""), ""), PIECES)
    memory = WrittenLater(LocalStorage(run), writes=True)
    before = status_bytes("VmRSS")
    started_s = time.perf_counter()
    dataset = load_dataset([argument], limits, skip_bad_samples=False, memory=memory)
    fingerprint, seconds = dataset.fingerprint, time.perf_counter() - started_s
    memory.flush()
    gc.collect()
    taken, peak = status_bytes("VmRSS") - before, status_bytes("VmHWM") - before
    print(json.dumps([len(dataset), seconds, taken / len(dataset), peak / len(dataset), fingerprint]))


def configuration(world: World, folder: Path, data: str) -> Path:
    """A run of a few steps on a dataset."""
    document = {
        "run": str(folder / "run"),
        "inputs": {
            "model_config": str(world.model_config),
            "base_checkpoint": str(world.base_checkpoint),
            "tokenizer": str(world.tokenizer),
        },
        "data": {"train_manifests": [data]},
        "recipe": {"global_batch_samples": 8},
        "schedule": {"max_steps": 100},
        "report": {"log_interval_steps": 1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def rows(folder: Path, samples: int, plain: int) -> Iterator[tuple[str, str, Path]]:
    """Name of a row, the dataset, and a folder for its runs."""
    write_shards(made_up(samples), str(folder / "shards"), lambda _done, _total: None)
    small = max(1, samples // 10)
    write_shards(made_up(small), str(folder / "small"), lambda _done, _total: None)
    manifest = write_plain(folder / "plain", plain)
    for name, argument in (
        ("shards", folder / "shards"),
        ("shards, a tenth", folder / "small"),
        ("manifest, checked", manifest),
        ("manifest, remembered", manifest),
    ):
        place = folder / name.partition(",")[0] / "runs"
        place.mkdir(exist_ok=True, parents=True)
        yield name, str(argument), place


def main() -> None:
    """Print one row per dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--plain", type=int, default=100_000)
    parser.add_argument("--open", nargs=3, metavar=("DATASET", "MODEL", "RUN"), help="one row, in this process")
    given = parser.parse_args()
    if given.open:
        opened(*given.open)
        return
    print(f"{'':<22}{'samples':>10}{'open s':>9}{'bytes each':>12}{'at the peak':>13}{'first step s':>14}  account")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        world = make_world(folder / "world", WorldSize(samples=8, width=WIDTH, layers=1, heads=1))
        for row, argument, place in rows(folder, given.samples, given.plain):
            command = [sys.executable, "-m", "bench.scale", "--open", argument, str(world.model_config), str(place)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            count, open_s, each, peak, _ = found
            # A run of its own for each row; a remembered one has the outcome of the check of the row before.
            runs = place / row.replace(" ", "-")
            runs.mkdir()
            if row.endswith("remembered"):
                (runs / "run").mkdir()
                (place / "data").rename(runs / "run/data")
            started = first_step(configuration(world, runs, argument))
            print(
                f"{row:<22}{count:>10}{open_s:>9.2f}{each:>12.0f}{peak:>13.0f}{started.seconds:>14.1f}  "
                f"{started.account}"
            )


if __name__ == "__main__":
    main()
