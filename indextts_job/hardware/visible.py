"""The number of GPUs that this process may use, from device files and environment variables, without torch."""

import re
from collections.abc import Mapping
from pathlib import Path

_DEVICE_FILE = re.compile(r"nvidia\d+")
_ENTRY = re.compile(r"\d+|GPU-\S+|MIG-\S+")


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """The number of GPUs that CUDA will show to this process; 0 if there is no sign of any.

    Args:
        environment: Environment variables of this process.
        devices: Folder of the device files.
    """
    # Not /proc/driver/nvidia/gpus: in a container it may list all GPUs of the machine, while only those that the
    # container was given have device files.
    files = _device_files(devices)
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return _bounded(_listed(chosen), files)
    given = _listed(environment.get("NVIDIA_VISIBLE_DEVICES", ""))
    # `all`, `void` and `none` name no GPU, so the device files decide. CDI gives GPUs to containers whose variable
    # says `void`.
    if not given:
        return files
    # CUDA shows one slice of a MIG partition to a process that has not chosen several by CUDA_VISIBLE_DEVICES.
    return 1 if _has_slices(given) else _bounded(given, files)


def _device_files(folder: Path) -> int:
    return sum(bool(_DEVICE_FILE.fullmatch(path.name)) for path in folder.iterdir()) if folder.is_dir() else 0


def _bounded(entries: list[str], files: int) -> int:
    """The number of listed GPUs that can be used."""
    # MIG slices share the device file of their GPU, and WSL has no device files: then the list alone counts.
    if _has_slices(entries) or not files:
        return len(entries)
    # A variable may be inherited from outside the container: GPUs without a device file cannot be used.
    return min(len(entries), files)


def _has_slices(entries: list[str]) -> bool:
    return any(entry.startswith("MIG-") for entry in entries)


def _listed(value: str) -> list[str]:
    """The GPUs of a list. Like CUDA, it ends at the first entry that names no GPU, for example at -1."""
    found = []
    for entry in value.split(","):
        if not _ENTRY.fullmatch(entry.strip()):
            break
        found.append(entry.strip())
    return found
