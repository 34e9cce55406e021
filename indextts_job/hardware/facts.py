"""What this machine has, read anew on every start."""

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from indextts_job.hardware.plan import HardwareFacts

BFLOAT16_CAPABILITY = (8, 0)
"""Ampere: the first compute capability with native bfloat16. `is_bf16_supported` counts emulation on older ones."""


def read_facts(device: str, gpu: int = 0, processes: int = 1) -> HardwareFacts:
    """Facts about the device that will compute.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpu: Which of the visible ones.
        processes: That share this machine's CPUs.
    """
    import torch  # noqa: PLC0415  # a login node plans without it

    cpus = max(1, usable_cpus() // processes)
    if device != "cpu" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(gpu)
        return HardwareFacts(
            device="cuda",
            name=properties.name,
            memory_bytes=properties.total_memory,
            bfloat16=(properties.major, properties.minor) >= BFLOAT16_CAPABILITY,
            cpus=cpus,
            threads=wanted_threads(os.environ),
            driver=driver_version(),
            capability=f"{properties.major}.{properties.minor}",
            free_bytes=torch.cuda.mem_get_info(gpu)[0],
        )
    return HardwareFacts(
        device="cpu",
        name=platform.processor() or platform.machine(),
        memory_bytes=memory_limit_bytes(),
        bfloat16=False,
        cpus=cpus,
        threads=wanted_threads(os.environ),
    )


def wanted_threads(environment: Mapping[str, str]) -> int:
    """What OMP_NUM_THREADS asks for; 0 where it is not set, or holds what OpenMP would ignore too.

    On a CPU that is shared, as many threads as there are CPUs wait for each other.

    Args:
        environment: Of the process.
    """
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has a number for each level
    return int(first) if first.isascii() and first.isdigit() and len(first) <= 6 else 0


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: its affinity, bounded by the quota of its cgroup (v2, then v1)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cpus
    if quota in ("max", "-1"):
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def memory_limit_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that this process may use: what is installed, bounded by its cgroup (v2, then v1)."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (cgroup / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return min(installed, int(limit)) if limit.isdigit() else installed
    return installed


def driver_version() -> str:
    """Of NVIDIA's kernel module; empty where none is visible."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), "")
