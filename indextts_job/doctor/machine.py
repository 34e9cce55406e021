"""Checks of this machine: GPU, CPUs, memory, disk and the storage of a run. What they write is removed again."""

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from indextts_job.attempt.machine import configure_torch
from indextts_job.doctor.findings import Finding
from indextts_job.doctor.kernels import examine_kernels
from indextts_job.errors import ConfigError, IndexTTSJobError
from indextts_job.hardware.facts import advice_without_gpu, memory_limit_bytes, read_facts, usable_cpus
from indextts_job.hardware.plan import HardwareConfig, HardwareFacts, Plan, planned_precision
from indextts_job.report.console import human_bytes
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage

GIB = 2**30
LEAST_GPU_BYTES = 16 * GIB
"""float32 weights, gradients and two moments of 527 M trained parameters take 8 GiB, the rest is for activations."""
LEAST_MEMORY_BYTES = 12 * GIB
"""Room for the base checkpoint, the model, and the copy of the state that is being saved."""
LEAST_SHARED_BYTES = 512 * 2**20
"""Containers have 64 MiB by default, with which data workers and NCCL fail."""
LEAST_SCRATCH_BYTES = 10 * GIB
PROBE_BYTES = 8 * 2**20
PROBE_FOLDER = "doctor"
RETRY_S = 5.0
"""Bound of the retries here: a person waits for the answer."""


def examine(run: str, storage: StorageConfig | None = None) -> Iterator[Finding]:
    """Run all checks, the slowest last.

    Args:
        run: Folder or URL of a run whose storage is checked too; empty = none.
        storage: Settings of object stores.
    """
    yield from _gpu()
    yield _cpus()
    yield _memory()
    yield _shared_memory()
    yield _scratch()
    if run:
        yield from _storage(run, storage or StorageConfig())


def _gpu() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding(subject="GPU", level="error", found="torch sees none", advice=advice_without_gpu())
        return
    try:
        facts = read_facts("cuda")
    except ConfigError as error:  # the build of torch has no kernels for this card
        yield Finding(subject="GPU", level="error", found=str(error))
        return
    count = torch.cuda.device_count()
    name = f"{count} x {facts.name}" if count > 1 else facts.name
    found = f"{name}, capability {facts.capability}, driver {facts.driver or 'unknown'}, CUDA {torch.version.cuda}"
    yield Finding(subject="GPU", level="ok", found=found)
    yield _gpu_memory()
    yield Finding(
        subject="bfloat16",
        level="ok" if facts.bfloat16 else "warning",
        found="native" if facts.bfloat16 else "not native",
        advice="float16 with a loss scale is used instead.",
    )
    yield from _kernels(facts)


def _gpu_memory() -> Finding:
    free, total = torch.cuda.mem_get_info()
    small = total < LEAST_GPU_BYTES
    return Finding(
        subject="GPU memory",
        # The driver and our own CUDA context take less than a tenth.
        level="warning" if small or free < 0.9 * total else "ok",
        found=f"{human_bytes(free)} free of {human_bytes(total)}",
        advice="Training all of the released model takes 10 GiB before any sample."
        if small
        else "Somebody else uses this GPU: look with nvidia-smi.",
    )


def _kernels(facts: HardwareFacts) -> Iterator[Finding]:
    # The settings of a training: a kernel that refuses to be deterministic has to show here.
    plan = Plan(
        device="cuda", precision=planned_precision(facts, HardwareConfig()), capacity_tokens=0, threads=facts.cpus
    )
    configure_torch(HardwareConfig(), plan)
    yield from examine_kernels(torch.device("cuda"), plan.precision)


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


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  # nothing is written there
    if not folder.is_dir():
        return Finding(subject="shared memory", level="warning", found=f"no {folder}", advice="Mount a tmpfs there.")
    size = shutil.disk_usage(folder).total
    small = size < LEAST_SHARED_BYTES
    advice = "docker run --shm-size 2g, or an emptyDir with medium Memory at /dev/shm."
    return Finding(subject="shared memory", level="warning" if small else "ok", found=human_bytes(size), advice=advice)


def _scratch() -> Finding:
    folder = tempfile.gettempdir()
    try:
        # Permissions do not tell of a read-only mount or a full disk; a write does.
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
    made = _missing_folders(run)
    try:
        probe = _probe(open_storage(run, config))
    except IndexTTSJobError as error:
        yield Finding(subject="storage", level="error", found=str(error), exit_code=error.exit_code)
    except OSError as error:
        found, advice = f"{run}: {error.strerror or error}", "Choose another folder, or its permissions."
        yield Finding(subject="storage", level="error", found=found, advice=advice)
    else:
        yield _probe_finding(run, probe)
        yield Finding(
            subject="conditional writes",
            level="ok" if probe.exclusive else "warning",
            found="honoured" if probe.exclusive else "ignored",
            advice="Two attempts that start in one moment may both go on: start one job per run.",
        )
    finally:
        # Folders that something else has used meanwhile are not empty and stay.
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """The result of writing and reading one object."""

    write_s: float
    read_s: float
    same: bool
    """Whether the bytes read are the bytes written."""
    listed: bool
    exclusive: bool
    """Whether of several creators of one object only one succeeds."""


def _probe(storage: RunStorage) -> _Probe:
    # A name and a content that nobody has written before, or a cache could answer.
    key = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
    content = uuid.uuid4().bytes * (PROBE_BYTES // 16)
    write_s = _timed(lambda: storage.write(key, content))
    read_s = _timed(lambda: storage.read_large(key, len(content)))
    same = bytes(storage.read_large(key, len(content))) == content
    listed = key.rpartition("/")[2] in storage.list(PROBE_FOLDER)
    storage.delete(key)
    return _Probe(write_s=write_s, read_s=read_s, same=same, listed=listed, exclusive=storage.excludes_creators())


def _probe_finding(run: str, probe: _Probe) -> Finding:
    if probe.same and probe.listed:
        rates = f"wrote {human_bytes(PROBE_BYTES / probe.write_s)}/s, read {human_bytes(PROBE_BYTES / probe.read_s)}/s"
        return Finding(subject="storage", level="ok", found=f"{run}: {rates}")
    found = f"{run}: what was written is {'not listed' if probe.same else 'read back differently'}"
    return Finding(subject="storage", level="error", found=found, advice="Do not keep a run there.")


def _missing_folders(run: str) -> list[Path]:
    """The folders that a write into a local run would create, the innermost first."""
    if not files.is_local(run):
        return []
    path = files.local_path(run).absolute()
    return [folder for folder in (path / PROBE_FOLDER, path, *path.parents) if not folder.exists()]


def _timed(work: Callable[[], object]) -> float:
    began_s = time.monotonic()
    work()
    return max(time.monotonic() - began_s, 1e-9)  # a rate is computed from it
