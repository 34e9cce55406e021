"""Converts checkpoints of format 1, which no release has written, to the present one; proves that no tensor changed.

Objects keep their bytes and get the names of format 2. The checkpoints of format 1 and their objects stay beside them.

    python -m tests.support.convert_format_1 RUN
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from indextts_job.checkpoint.manifest import FORMAT_VERSION, MANIFESTS, OBJECTS, SHARED, parse_file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE
from indextts_job.hashing import identity_hash, integrity_hash
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage


def convert(storage: RunStorage) -> int:
    """Write every checkpoint of format 1 again.

    Returns:
        Their number.

    Raises:
        ValueError: A checkpoint is damaged, or a tensor is not what it was.
    """
    converted = 0
    for file in storage.list(MANIFESTS):
        key = f"{MANIFESTS}/{file}"
        document = json.loads(storage.read(key))
        name = parse_file_name(file)
        if name is None or document["format_version"] != 1:
            continue
        _demand_hash(document, file)
        before = _digests(storage, document)
        storage.write(key, _document(storage, document))
        store = CheckpointStore(storage)
        after = {key: hash_of(tensor.numpy()) for key, tensor in store.load(store.manifest(name)).items()}
        if after != before:
            raise ValueError(f"{file}: tensors differ")
        converted += 1
    return converted


def hash_of(values: np.ndarray[Any, Any]) -> str:
    return identity_hash(np.ascontiguousarray(values).tobytes())


def _demand_hash(document: dict[str, Any], file: str) -> None:
    plain = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != document["sha256"]:
        raise ValueError(f"{file}: damaged")


def _digests(storage: RunStorage, document: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor, read as format 1 says."""
    contents = {}
    for key, entry in document["objects"].items():
        contents[key] = storage.read(key)
        if identity_hash(contents[key]) != entry["sha256"]:
            raise ValueError(f"{key}: damaged")
    return {
        name: identity_hash(contents[entry["object"]][entry["start"] : entry["stop"]])
        for name, entry in document["tensors"].items()
    }


def _document(storage: RunStorage, document: dict[str, Any]) -> bytes:
    of_base = {entry["object"] for name, entry in document["tensors"].items() if name.startswith(BASE)}
    shared = of_base | set(document["files"].values())
    keys, objects = {}, {}
    for key, entry in document["objects"].items():
        content = storage.read(key)
        digest = integrity_hash(content)
        keys[key] = f"{SHARED if key in shared else OBJECTS}/{digest}.{key.rpartition('.')[2]}"
        storage.write(keys[key], content)
        objects[keys[key]] = {"xxh3": digest, "bytes": entry["bytes"]}
    document |= {
        "format_version": FORMAT_VERSION,
        "objects": objects,
        "tensors": {name: entry | {"object": keys[entry["object"]]} for name, entry in document["tensors"].items()},
        "files": {name: keys[key] for name, key in document["files"].items()},
    }
    del document["sha256"]
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


if __name__ == "__main__":
    print(f"{convert(open_storage(str(Path(sys.argv[1]))))} checkpoints converted, every tensor equal")  # noqa: T201
