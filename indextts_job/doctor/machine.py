"""Whether this machine can train: GPU, CPUs, memory, disk, and the bucket. Changes nothing that stays."""

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from indextts_job.doctor.findings import Finding
from indextts_job.errors import EXIT_SOFTWARE, IndexTTSJobError
from indextts_job.hardware.facts import driver_version, memory_limit_bytes, read_facts, usable_cpus
from indextts_job.report.console import human_bytes
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage

GIB = 2**30
LEAST_GPU_BYTES = 16 * GIB
"""float32 weights, gradients and two moments of 527 M trained parameters take 8 GiB, the rest is for activations."""
LEAST_MEMORY_BYTES = 12 * GIB
"""The base as it is read, the model, and a copy of what a checkpoint saves."""
LEAST_SHARED_BYTES = 512 * 2**20
LEAST_SCRATCH_BYTES = 10 * GIB
PROBE_BYTES = 8 * 2**20
PROBE_FOLDER = "doctor"
RETRY_S = 5.0


def examine(run: str, storage: StorageConfig | None = None) -> Iterator[Finding]:
    """Look at everything, the slowest last.

    Args:
        run: Folder or URL of a run, whose storage is tried too; empty = none.
        storage: How to reach it.
    """
    yield from _gpu()
    yield _cpus()
    yield _memory()
    yield _shared_memory()
    yield _scratch()
    if run:
        yield from _storage(run, storage or StorageConfig())


def _gpu() -> Iterator[Finding]:
    driver = driver_version()
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            advice = f"torch {torch.__version__} is a CPU build: install the one from the default index, or the image."
        elif not driver:
            advice = "No NVIDIA driver is visible. In a container: docker run --gpus all, or nvidia.com/gpu in limits."
        else:
            advice = f"Driver {driver} is there, but torch (CUDA {torch.version.cuda}) cannot use it: is it too old?"
        yield Finding(subject="GPU", level="error", found="torch sees none", advice=advice)
        return
    facts = read_facts("cuda")
    free, total = torch.cuda.mem_get_info()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    count = torch.cuda.device_count()
    name = f"{count} x {facts.name}" if count > 1 else facts.name
    found = f"{name}, capability {capability}, driver {facts.driver or 'unknown'}, CUDA {torch.version.cuda}"
    yield Finding(subject="GPU", level="ok", found=found)
    small = total < LEAST_GPU_BYTES
    yield Finding(
        subject="GPU memory",
        level="warning" if small or free < 0.9 * total else "ok",
        found=f"{human_bytes(free)} free of {human_bytes(total)}",
        advice="Micro-batches will be small." if small else "Somebody else uses this GPU: look with nvidia-smi.",
    )
    yield Finding(
        subject="bfloat16",
        level="ok" if facts.bfloat16 else "warning",
        found="native" if facts.bfloat16 else "not native",
        advice="float16 with a loss scale is used instead.",
    )
    yield _kernels()


def _kernels() -> Finding:
    """A wheel that lacks the kernels of this card is found out by the first of them."""
    try:
        one = torch.full((256, 256), 0.5, device="cuda", dtype=torch.float16)
        value = float((one @ one).sum())
    except RuntimeError as error:
        advice = "This build of torch does not fit the card or the driver."
        found = str(error).splitlines()[0]
        return Finding(subject="kernels", level="error", found=found, advice=advice, exit_code=EXIT_SOFTWARE)
    right = value == 256**3 / 4
    return Finding(subject="kernels", level="ok" if right else "error", found=f"a product gives {value:.0f}")


def _cpus() -> Finding:
    cpus = usable_cpus()
    few = cpus < 2
    advice = "Reading and packing will share them with the training: ask for 4 or more."
    return Finding(subject="CPUs", level="warning" if few else "ok", found=f"{cpus} usable", advice=advice)


def _memory() -> Finding:
    limit = memory_limit_bytes()
    little = limit < LEAST_MEMORY_BYTES
    advice = f"The released model needs {human_bytes(LEAST_MEMORY_BYTES)}; with less the kernel kills the process."
    return Finding(subject="memory", level="warning" if little else "ok", found=human_bytes(limit), advice=advice)


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  # looked at, not written
    if not folder.is_dir():
        return Finding(subject="shared memory", level="warning", found=f"no {folder}", advice="Mount a tmpfs there.")
    size = shutil.disk_usage(folder).total
    small = size < LEAST_SHARED_BYTES
    advice = "docker run --shm-size 2g, or an emptyDir with medium Memory at /dev/shm."
    return Finding(subject="shared memory", level="warning" if small else "ok", found=human_bytes(size), advice=advice)


def _scratch() -> Finding:
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 4096)
    except OSError as error:
        advice = "Mount something writable at /tmp: copies of shards go there."
        return Finding(subject="scratch space", level="error", found=f"{folder}: {error.strerror}", advice=advice)
    free = shutil.disk_usage(folder).free
    little = free < LEAST_SCRATCH_BYTES
    advice = "Shards that do not fit are read from the bucket each time: name a larger data.cache_folder."
    found = f"{human_bytes(free)} free in {folder}"
    return Finding(subject="scratch space", level="warning" if little else "ok", found=found, advice=advice)


def _storage(run: str, config: StorageConfig) -> Iterator[Finding]:
    """Write, read back, list and delete one object, as a checkpoint would."""
    config = replace(config, retry_seconds=min(RETRY_S, config.retry_seconds))
    files.configure_object_stores(config)
    key = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
    made = _missing_folders(run)
    try:
        storage = open_storage(run, config)
        content = uuid.uuid4().bytes * (PROBE_BYTES // 16)
        write_s = _timed(lambda: storage.write(key, content))
        read_s = _timed(lambda: storage.read_large(key, len(content)))
        same = bytes(storage.read_large(key, len(content))) == content
        listed = key.rpartition("/")[2] in storage.list(PROBE_FOLDER)
        storage.delete(key)
        exclusive = storage.excludes_creators()
    except IndexTTSJobError as error:
        yield Finding(subject="storage", level="error", found=str(error), exit_code=error.exit_code)
        return
    except OSError as error:
        found = f"{run}: {error.strerror or error}"
        yield Finding(
            subject="storage", level="error", found=found, advice="Choose another folder, or its permissions."
        )
        return
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    rates = f"wrote {human_bytes(PROBE_BYTES / write_s)}/s, read {human_bytes(PROBE_BYTES / read_s)}/s"
    if same and listed:
        yield Finding(subject="storage", level="ok", found=f"{run}: {rates}")
    else:
        found = f"{run}: what was written is {'not listed' if same else 'read back differently'}"
        yield Finding(subject="storage", level="error", found=found, advice="Do not keep a run there.")
    yield Finding(
        subject="conditional writes",
        level="ok" if exclusive else "warning",
        found="honoured" if exclusive else "ignored",
        advice="Two attempts that start in one moment may both go on: start one job per run.",
    )


def _missing_folders(run: str) -> list[Path]:
    """Folders that a write into a local run would make, the innermost first."""
    if not files.is_local(run):
        return []
    path = files.local_path(run).absolute()
    return [folder for folder in (path / PROBE_FOLDER, path, *path.parents) if not folder.exists()]


def _timed(work: Callable[[], object]) -> float:
    began_s = time.monotonic()
    work()
    return max(time.monotonic() - began_s, 1e-9)
