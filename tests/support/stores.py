"""Stores and checkpoint contents for tests, and a storage that fails on purpose."""

import errno
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, Content
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.hashing import Buffer
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage, StoredFile
from tests.support.values import values as sound_values

_numbers = itertools.count()


def fresh_url(kind: str, folder: Path) -> str:
    """A run of its own: `file` below the folder, or `memory`."""
    return str(folder / f"run-{next(_numbers)}") if kind == "file" else f"memory://run-{next(_numbers)}"


def content(seed: int, *, moments: bool = True, values: CheckpointValues | None = None) -> Content:
    """Weights and moments that depend on the seed, base tensors that do not."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    groups = [{"model/a": random(8, 4), "model/b": random(3)}]
    if moments:
        groups.append({"exp_avg/a": random(8, 4), "exp_avg/b": random(3)})
    groups.append({"base/frozen": torch.arange(100, dtype=torch.float16)})
    return Content(
        groups=groups,
        carried={},
        carried_objects={},
        files={"tokenizer.model": b"pieces"},
        values=values if values is not None else sound_values(total_steps=24 + seed % 1000),
    )


def save(
    store: CheckpointStore, step: int, *, attempt: int = 1, start: int = 0, tags: tuple[str, ...] = (), seed: int = -1
) -> CheckpointName:
    """Commit a checkpoint whose content depends on the step."""
    name = CheckpointName(step, attempt, start, tags)
    store.commit(name, content(step if seed < 0 else seed), lambda: None)
    return name


class FaultyStorage:
    """Passes everything on, and lets `fault(n, verb, key)` interfere before the n-th operation (from 0)."""

    def __init__(self, inner: RunStorage, fault: Callable[[int, str, str], None]) -> None:
        self.url = inner.url
        self._inner = inner
        self._fault = fault
        self.operations = 0

    def _count(self, verb: str, key: str) -> None:
        number = self.operations
        self.operations += 1
        self._fault(number, verb, key)

    def read(self, key: str) -> bytes:
        self._count("read", key)
        return self._inner.read(key)

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        self._count("read", key)
        return self._inner.read_large(key, size_bytes)

    def write(self, key: str, content: Buffer) -> None:
        self._count("write", key)
        self._inner.write(key, content)

    def create(self, key: str, content: bytes) -> None:
        self._count("create", key)
        self._inner.create(key, content)

    def excludes_creators(self) -> bool:
        return self._inner.excludes_creators()

    def append(self, key: str, content: bytes) -> None:
        self._count("append", key)
        self._inner.append(key, content)

    def list(self, folder: str) -> dict[str, StoredFile]:
        self._count("list", folder)
        return self._inner.list(folder)

    def delete(self, key: str) -> None:
        self._count("delete", key)
        self._inner.delete(key)

    def folders(self, folder: str) -> Sequence[str]:
        self._count("list", folder)
        return self._inner.folders(folder)

    def remove_empty_folders(self) -> None:
        self._inner.remove_empty_folders()

    def flush(self, *, patient: bool = False) -> None:
        self._inner.flush(patient=patient)

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        self._count("remove_temporary", folder)
        self._inner.remove_temporary(folder, older_than_s)


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def reopened(store: CheckpointStore) -> CheckpointStore:
    """The run as another process sees it."""
    return CheckpointStore(open_storage(store.storage.url))
