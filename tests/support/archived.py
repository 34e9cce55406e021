"""Change arrays and records of a small dataset of IndexTTS-2.5 in place, to plant faults."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from indextts_job.demo.world import World

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
Record = dict[str, Any]


def records(manifest: Path) -> list[Record]:
    """The records of a manifest."""
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def write_records(manifest: Path, of: list[Record]) -> None:
    """Write a manifest."""
    manifest.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in of), encoding="utf-8")


def change_records(world: World, change: Callable[[Record], object], *, first: int | None = None) -> None:
    """Change the first records of the training set, or all."""
    found = records(world.train_manifest)
    for record in found[:first]:
        change(record)
    write_records(world.train_manifest, found)


def change_arrays(world: World, change: Callable[[Arrays], object], *, first: int | None = None) -> None:
    """Change the archives of the first utterances of the training set, or of all; the manifest follows."""
    folder = world.train_manifest.parent / "features"
    paths = sorted(folder.glob("utt_*.npz"))[:first]
    for path in paths:
        with np.load(path) as archive:
            arrays = dict(archive)
        change(arrays)
        np.savez(path, **arrays)
    found = records(world.train_manifest)
    for record in found:
        with np.load(world.train_manifest.parent / record["target_features"]) as archive:
            if "text_ids" in archive and "codes" in archive:
                record["text_len"], record["code_len"] = len(archive["text_ids"]), len(archive["codes"])
    write_records(world.train_manifest, found)
