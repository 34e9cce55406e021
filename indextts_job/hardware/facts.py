"""The facts about this machine: GPU, CPUs and memory that this process may use. Read again at every start."""

import ctypes
import math
import os
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareFacts
from indextts_job.scheduler import requested_gpus

OLDEST_OF_CUDA_13 = (7, 5)
"""Turing: CUDA 13 cannot compile for older GPUs, and torch's builds with CUDA 13 have no kernels for them."""
OLDER_BUILDS = (
    "Builds with CUDA 13 begin at 7.5. A V100 (7.0) takes torch 2.10 with CUDA 12.8: pip install -c "
    "constraints-v100.txt torch. Older cards are not supported."
)
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)")
BFLOAT16_CAPABILITY = (8, 0)
"""Ampere: the first compute capability with native bfloat16. torch's `is_bf16_supported` is also true for emulation."""


def read_facts(device: str, gpu: int = 0, processes: int = 1) -> HardwareFacts:
    """Facts about the device that will compute.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpu: Index of a visible GPU.
        processes: Number of processes that share this machine's CPUs.

    Raises:
        ConfigError: This build of torch has no kernels for the GPU, or a GPU is asked for and there is none.
    """
    import torch  # noqa: PLC0415  # the rest of this module works on login nodes without torch

    cpus = max(1, usable_cpus() // processes)
    # Read when CUDA starts. Micro-batches differ in size, and segments of a fixed size would leave gaps between them.
    # The second name is the older one, and still read.
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} and has_management_library():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    # torch warns in ten lines about a card without kernels; one message of ours follows.
    warnings.filterwarnings("ignore", message="(?s).*compute capability", category=UserWarning, module="torch.cuda")
    if device != "cpu" and torch.cuda.is_available():
        if gpu >= torch.cuda.device_count():
            raise ConfigError(
                f"this is process {gpu + 1} of this node, but torch sees {torch.cuda.device_count()} GPUs here. Start "
                "as many processes as there are GPUs (hardware.processes)."
            )
        properties = torch.cuda.get_device_properties(gpu)
        capability = properties.major, properties.minor
        demand_kernels(properties.name, capability, torch.cuda.get_arch_list(), torch.__version__)
        return HardwareFacts(
            device="cuda",
            name=properties.name,
            memory_bytes=properties.total_memory,
            bfloat16=capability >= BFLOAT16_CAPABILITY,
            cpus=cpus,
            threads=wanted_threads(os.environ),
            driver=driver_version(),
            capability=f"{properties.major}.{properties.minor}",
            free_bytes=torch.cuda.mem_get_info(gpu)[0],
        )
    if device == "cuda":
        raise ConfigError(f"hardware.device is cuda, but torch sees no GPU here. {advice_without_gpu()}")
    # A CPU would take weeks for what the job was given a GPU for, and nobody would look.
    if device == "auto" and requested_gpus(os.environ):
        raise ConfigError(
            f"this job has asked its scheduler for GPUs, but torch sees no GPU here. {advice_without_gpu()} To "
            "compute on the CPU all the same, set hardware.device (for other commands --device) to cpu."
        )
    return HardwareFacts(
        device="cpu",
        name=platform.processor() or platform.machine(),
        memory_bytes=memory_limit_bytes(),
        bfloat16=False,
        cpus=cpus,
        threads=wanted_threads(os.environ),
    )


def demand_kernels(name: str, capability: tuple[int, int], architectures: Sequence[str], version: str) -> None:
    """Check that a build of torch can run on a GPU.

    Without this check the first kernel fails, with "no kernel image is available", after minutes of reading.

    Args:
        name: Name of the GPU.
        capability: Its compute capability.
        architectures: What the build was compiled for, as `torch.cuda.get_arch_list` gives it: `sm_90`, `compute_120`.
        version: Version of torch.

    Raises:
        ConfigError: It has no kernels for this GPU.
    """
    if not architectures or any(_runs_on(architecture, capability) for architecture in architectures):
        return
    compiled_for = ", ".join(architectures)
    advice = OLDER_BUILDS if capability < OLDEST_OF_CUDA_13 else "Install a newer torch, compiled for this GPU."
    raise ConfigError(
        f"torch {version} has no kernels for {name}, whose compute capability is {capability[0]}.{capability[1]}: it "
        f"was compiled for {compiled_for}. {advice}"
    )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a GPU: machine code (sm) within one major version, PTX on all newer."""
    match = _ARCHITECTURE.match(architecture)
    if not match:
        return False
    major, minor = int(match[2]), int(match[3])
    same = major == capability[0] if match[1] == "sm" else True
    return same and (major, minor) <= capability


def advice_without_gpu() -> str:
    """Why torch sees no GPU, as far as this process can know."""
    import torch  # noqa: PLC0415

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build: install the one from the default index, or the image."
    if not (driver := driver_version()):
        return "No NVIDIA driver is visible. In a container: docker run --gpus all, or nvidia.com/gpu in limits."
    return f"Driver {driver} is there, but torch (CUDA {torch.version.cuda}) cannot use it: is it too old?"


def has_management_library() -> bool:
    """Whether NVML is there; a container that was given the GPU for computing only does not have it.

    torch (2.14 at least) calls it without a look at whether it is there, once segments may grow: a segmentation fault.
    """
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def wanted_threads(environment: Mapping[str, str]) -> int:
    """The number of threads in OMP_NUM_THREADS; 0 where it is not set, or holds a value that OpenMP ignores too.

    The user's number counts, because on a shared CPU a thread for each core makes all of them wait for each other.

    Args:
        environment: Environment variables of the process.
    """
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has a number for each level
    return int(first) if first.isascii() and first.isdigit() and len(first) <= 6 else 0


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: its affinity, bounded by the quota of its cgroup (version 2 or 1)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = _cpu_quota(cgroup)
    # Containers have no quota ("max" in version 2, -1 in version 1) unless somebody sets one.
    if quota in ("max", "-1"):
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def _cpu_quota(cgroup: Path) -> tuple[str, str]:
    """CPU time per period, both in microseconds."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return "max", "1"
    return quota, period


def memory_limit_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that this process may use: the installed memory, bounded by its cgroup (version 2 or 1)."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (cgroup / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        # Without a limit version 2 says "max", and version 1 a number larger than any memory.
        return min(installed, int(limit)) if limit.isdigit() else installed
    return installed


def driver_version() -> str:
    """Version of NVIDIA's kernel module; empty where none is visible."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), "")
