"""Saves and loads in a bucket: our store against what others do with the same state, on one server, in one run.

Starts SeaweedFS on loopback. Rivals: a bare parallel multipart PUT and ranged GETs of the same bytes through the same
client; `torch.save` and `torch.load` through an s3fs file; `torch.distributed.checkpoint` with its fsspec storage.

    python -m bench.checkpoint [--mebibytes 256] [--rounds 3]
"""

import argparse
import io
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import fsspec
import torch
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from indextts_job import files
from indextts_job.checkpoint.remote import open_storage
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, Content
from indextts_job.retry import StorageConfig
from tests.support.servers import client_environment, running, seaweedfs

DCP_URL = "s3://bucket/dcp"
PART_BYTES = 32 * 2**20
_steps = itertools.count(1)


def load_dcp(state: dict[str, torch.Tensor]) -> None:
    """Load into fresh tensors of the same shapes."""
    empty = {key: torch.empty_like(value) for key, value in state.items()}
    dcp_load(empty, storage_reader=FsspecReader(DCP_URL), no_dist=True)


def state_of(mebibytes: int) -> dict[str, torch.Tensor]:
    """Weights and two moments, in tensors of about 4 MiB."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, mebibytes // 12)
    return {
        f"{kind}/{i:03d}": torch.randn(1024, 1024, generator=generator)
        for kind in ("model", "exp_avg", "exp_avg_sq")
        for i in range(count)
    }


def content_of(state: dict[str, torch.Tensor]) -> Content:
    """The same state as the store takes it."""
    kinds = ("model", "exp_avg", "exp_avg_sq")
    groups = [{key: value for key, value in state.items() if key.startswith(f"{kind}/")} for kind in kinds]
    return Content(groups=groups, carried={}, carried_objects={}, files={}, values={})


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def main() -> None:
    """Print one row per way of saving."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, running(seaweedfs(Path(name))) as server:
        os.environ.update(client_environment(server))
        files.configure_object_stores(StorageConfig())
        measure(state_of(given.mebibytes), given.rounds)


def measure(state: dict[str, torch.Tensor], rounds: int) -> None:
    """Take turns, print medians."""
    filesystem = fsspec.filesystem("s3")
    size = sum(value.nbytes for value in state.values())
    body = torch.cat([value.flatten() for value in state.values()]).numpy().tobytes()
    parts = {f"bucket/bare/{i}": body[i : i + PART_BYTES] for i in range(0, size, PART_BYTES)}
    store = CheckpointStore(open_storage("s3://bucket/ours"))

    def changed() -> dict[str, torch.Tensor]:
        step = next(_steps)
        return {key: value + step for key, value in state.items()}

    def save_ours(values: dict[str, torch.Tensor]) -> CheckpointName:
        name = CheckpointName(next(_steps), 1, 0)
        store.commit(name, content_of(values), lambda: None)
        return name

    def save_torch(values: dict[str, torch.Tensor]) -> None:
        with filesystem.open("bucket/torch/latest.pth", "wb") as file:
            torch.save(values, file)

    def load_torch() -> object:
        with filesystem.open("bucket/torch/latest.pth", "rb") as file:
            return torch.load(io.BytesIO(file.read()), weights_only=True)

    rows: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(rounds + 1):
        values = changed()
        taken: dict[str, tuple[float, float]] = {}
        taken["bare parallel PUT, GET"] = (
            seconds_of(lambda: filesystem.pipe(parts)),
            seconds_of(lambda: filesystem.cat(list(parts))),
        )
        names: list[CheckpointName] = []
        save_s = seconds_of(lambda values=values, names=names: names.append(save_ours(values)))  # type: ignore[misc]
        load_s = seconds_of(lambda names=names: store.load(store.manifest(names[0])))  # type: ignore[misc]
        taken["indextts-job, hashed and verified"] = (save_s, load_s)
        taken["torch.save, torch.load through s3fs"] = (
            seconds_of(lambda values=values: save_torch(values)),  # type: ignore[misc]
            seconds_of(load_torch),
        )
        taken["torch.distributed.checkpoint, fsspec"] = (
            seconds_of(lambda values=values: dcp_save(values, storage_writer=FsspecWriter(DCP_URL), no_dist=True)),  # type: ignore[misc]
            seconds_of(lambda: load_dcp(state)),
        )
        for row, pair in taken.items():
            if turn:
                rows.setdefault(row, ([], []))
                for kept, one in zip(rows[row], pair, strict=True):
                    kept.append(one)
    same = seconds_of(lambda: save_ours(values))
    report(rows, size, same)


def report(rows: dict[str, tuple[list[float], list[float]]], size: int, unchanged_s: float) -> None:
    """Medians as rates, and as ratios to the bare transfer."""
    medians = {row: [sorted(part)[len(part) // 2] for part in pair] for row, pair in rows.items()}
    bare_save, bare_load = next(iter(medians.values()))
    print(f"{size / 2**20:.0f} MiB; ratios to the bare transfer of the same bytes")
    print(f"{'':<38}{'save MiB/s':>11}{'ratio':>7}{'load MiB/s':>12}{'ratio':>7}")
    for row, (save, load) in medians.items():
        rate = size / 2**20
        print(f"{row:<38}{rate / save:>11.0f}{bare_save / save:>7.2f}{rate / load:>12.0f}{bare_load / load:>7.2f}")
    print(f"saving it again unchanged: {unchanged_s:.2f} s, only a manifest is written")


if __name__ == "__main__":
    main()
