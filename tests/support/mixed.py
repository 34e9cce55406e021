"""A small dataset as the sources of a weighted mixture."""

import json
from pathlib import Path

from indextts_job.demo.world import World

SIZES = (24, 10, 6)
WEIGHTS = (100, 40, 15)
NAMES = ("main", "en", "zh")


def mixed(world: World, folder: Path) -> list[dict[str, object]]:
    """The training set of a world, cut into the sources of `SIZES`; entries of `data.datasets`.

    Args:
        world: Its dataset has as many samples as `SIZES` together.
        folder: Gets the manifests; created when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in world.train_manifest.read_text(encoding="utf-8").splitlines()]
    for record in records:
        paths = {
            key: str(world.train_manifest.parent / value) for key, value in record.items() if key.endswith("_path")
        }
        record.update(paths)
    assert len(records) == sum(SIZES)
    entries: list[dict[str, object]] = []
    for name, size, weight in zip(NAMES, SIZES, WEIGHTS, strict=True):
        own, records = records[:size], records[size:]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in own), encoding="utf-8")
        entries.append({"manifest": str(path), "weight": weight, "name": name})
    return entries


KINDS = ("one", "weighted", "changing")
"""One source; a mixture; and one whose weights change twice and which gets its last source later."""


def mixture_keys(world: World, folder: Path, kind: str) -> dict[str, object]:
    """Keys of `config_for` for a kind of data.

    Args:
        world: As in `mixed`.
        folder: As in `mixed`.
        kind: One of `KINDS`.
    """
    if kind == "one":
        return {}
    entries = mixed(world, folder)
    keys: dict[str, object] = {"data__train_manifests": [], "data__datasets": entries}
    if kind == "changing":
        entries[-1]["weight"] = 0
        keys["data__mixture_from_step"] = [
            {"step": 7, "weights": [1, 0.5, 0.25]},
            {"step": 16, "weights": [85, 0, 15]},
        ]
    return keys
