"""What a preparation left behind."""

import json
from typing import Any

from indextts_job.data.shard_index import ShardIndex, parse_index
from indextts_job.storage.remote_storage import open_storage

TRAIN, VALIDATION = "train.index.safetensors", "val.index.safetensors"


def index_of(output: object, name: str = TRAIN) -> ShardIndex:
    return parse_index(open_storage(str(output)).read(name), name)


def indexes(output: object) -> dict[str, bytes]:
    storage = open_storage(str(output))
    return {name: storage.read(name) for name in (TRAIN, VALIDATION) if name in storage.list("")}


def names(output: object, name: str = TRAIN) -> list[str]:
    found = index_of(output, name).names
    return [found[place] for place in range(len(found))]


def targets(output: object) -> set[str]:
    """Ids of the targets in both splits."""
    return {pair.partition("__")[0] for name in indexes(output) for pair in names(output, name)}


def refused(output: object) -> dict[str, str]:
    """Reason by id."""
    lines = open_storage(str(output)).read("refused.jsonl").decode().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines) if entry["status"] == "refused"}


def warned(output: object) -> dict[str, list[str]]:
    """Ids by warning."""
    summary = summary_of(output)
    return {what: found["examples"] for what, found in summary["warnings"].items()}


def summary_of(output: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(open_storage(str(output)).read("prepared.json"))
    return document


def records(output: object) -> list[str]:
    return sorted(open_storage(str(output)).list("units"))
