"""How many GPUs this process may use, before torch is there to ask: from device files and the usual variables."""

import re
from collections.abc import Mapping
from pathlib import Path

_DEVICE_FILE = re.compile(r"nvidia\d+")
_ENTRY = re.compile(r"\d+|GPU-\S+|MIG-\S+")


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """GPUs that CUDA will show to this process; 0 where nothing tells of any.

    A container gets device files of the GPUs that it was given, while `/proc/driver/nvidia/gpus` may list all of the
    machine. Where no device file is there (WSL has none) the variables alone count.

    Args:
        environment: Of this process.
        devices: Folder of the device files.
    """
    files = sum(bool(_DEVICE_FILE.fullmatch(path.name)) for path in devices.iterdir()) if devices.is_dir() else 0
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return _bounded(_listed(chosen), files)
    given = _listed(environment.get("NVIDIA_VISIBLE_DEVICES", ""))
    # `all`, `void` and `none` name no GPU: the device files tell then, also those that CDI puts into a container whose
    # variable says `void`.
    if not given:
        return files
    # CUDA shows one slice of a MIG partition to a process that has not chosen several by CUDA_VISIBLE_DEVICES.
    return 1 if any(entry.startswith("MIG-") for entry in given) else _bounded(given, files)


def _bounded(entries: list[str], files: int) -> int:
    """A list may be older than the container: GPUs without a device file cannot be used. MIG slices share a file."""
    sliced = any(entry.startswith("MIG-") for entry in entries)
    return len(entries) if sliced or not files else min(len(entries), files)


def _listed(value: str) -> list[str]:
    """GPUs of a list; CUDA reads it up to the first entry that is none, which is how a -1 ends it."""
    found = []
    for entry in value.split(","):
        if not _ENTRY.fullmatch(entry.strip()):
            break
        found.append(entry.strip())
    return found
