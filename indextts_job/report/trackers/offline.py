"""What Weights & Biases has written offline, so that a resumed attempt adds to it and repeats nothing.

An attempt that was killed has left a file of its own, with whatever had reached it; the next one begins another file
of the same run. `wandb sync` joins them. Files of a node that is gone are gone, and their points are written again.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 2**15, struct.Struct("<IHB")
"""LevelDB's log format: blocks of 32 KiB, and for each fragment its checksum, length and kind."""
FILE_HEADER_BYTES = 7
WHOLE, LAST = 1, 4
"""Kinds of fragments: a whole record, the last one of a record."""


def known_offline(folder: Path, run_id: str) -> dict[str, int]:
    """Last step of each kind of point in the files of a run.

    Args:
        folder: The folder `wandb`, which holds a folder for each start of each run.
        run_id: The run.
    """
    known: dict[str, int] = {}
    for path in folder.glob(f"*-{run_id}/run-{run_id}.wandb"):
        for row in _rows(path):
            for kind in ("train", "val"):
                step = row.get(f"last_{kind}_step")
                if isinstance(step, int):
                    known[kind] = max(step, known.get(kind, -1))
    return known


def _rows(path: Path) -> Iterator[dict[str, object]]:
    for content in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # generated, without types
        try:
            record.ParseFromString(content)
        except DecodeError:  # the process was killed while it was written
            return
        yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format; none that was cut off.

    Args:
        content: The whole file.
    """
    place, record = FILE_HEADER_BYTES, b""
    while place + HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:  # a header never crosses the edge of a block
            place += left
            continue
        _, length, kind = HEADER.unpack_from(content, place)
        place += HEADER.size + length
        record += content[place - length : place]
        if kind in (WHOLE, LAST) and place <= len(content):
            yield record
            record = b""
