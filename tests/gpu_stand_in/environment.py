"""The virtual environment with the CUDA build of torch, and the library that its processes are started under."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.gpu_stand_in.cards import Card
from tests.support.pure import REPOSITORY

LIBRARY = Path(__file__).with_name("library")
CONTEXT_MIB = 450
"""Memory that a context with torch's kernels takes (an estimate)."""

NOT_PASSED_ON = (
    "CUDA_VISIBLE_DEVICES",
    "LD_PRELOAD",
    "NVIDIA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Environment variables that say something about the GPUs of this machine, or about torch's allocator."""


def environment() -> Path:
    """The folder of the virtual environment."""
    return REPOSITORY / os.environ.get("CUDA_VENV", ".venv-cuda")


def missing() -> str:
    """What the stand-in needs and this machine lacks; empty where everything is there."""
    if shutil.which("gcc") is None:
        return "gcc not installed: apt-get install gcc libc6-dev"
    if not any(environment().glob("ready-*")):
        return f"no CUDA build of torch in {environment()}: make stand-in-env"
    if not (packages() / "nvidia/cu13/include/cublas_v2.h").is_file():
        return f"torch in {environment()} is no CUDA build: there is none for this platform"
    return ""


def packages() -> Path:
    """The folder of the packages in the environment."""
    return next(environment().glob("lib/python3*/site-packages"), environment())


@dataclass(frozen=True, slots=True)
class StandIn:
    """A built library."""

    folder: Path

    @property
    def library(self) -> Path:
        """The file."""
        return self.folder / "cuda/libcuda.so.1"

    def variables(self, card: Card, *, taken_mib: float = CONTEXT_MIB, nvml: bool = True) -> dict[str, str]:
        """Environment variables of a process that sees this card.

        Args:
            card: The only card of the machine.
            taken_mib: Its memory that is in use by the context and by other processes.
            nvml: Whether the machine has NVIDIA's management library; containers may lack it.
        """
        folders = [self.library.parent, *([self.folder / "nvml"] if nvml else [])]
        return plain_variables() | {
            "LD_PRELOAD": str(self.library),
            # Triton and torch open both by their names.
            "LD_LIBRARY_PATH": ":".join(str(path) for path in folders),
            "TRITON_LIBCUDA_PATH": str(self.library.parent),
            # Kernels that were compiled for the stand-in are nobody else's.
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "STAND_IN_CAPABILITY": str(card.capability),
            "STAND_IN_GIB": str(card.gib),
            "STAND_IN_NAME": card.name,
            "STAND_IN_MULTIPROCESSORS": str(card.multiprocessors),
            "STAND_IN_OTHERS_MIB": str(taken_mib),
        }


@contextmanager
def started(variables: Mapping[str, str], *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A running Python of the environment; killed at the end if it still runs.

    Args:
        variables: All environment variables of the process.
        arguments: Of Python.
    """
    child = subprocess.Popen(
        [str(environment() / "bin/python"), *arguments],
        cwd=REPOSITORY,
        env=dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def plain_variables() -> dict[str, str]:
    """Environment variables of a process that sees no GPU, whatever this machine has."""
    left_out = (
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "LD_PRELOAD",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
    )
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def built(folder: Path) -> StandIn:
    """Compile the library.

    Args:
        folder: Where it is written.
    """
    made = StandIn(folder)
    for name in ("cuda", "nvml"):
        (folder / name).mkdir()
    includes = [LIBRARY / "stubs", packages() / "nvidia/cu13/include"]
    # CUDA's headers include some that come with its compiler; Triton brings those.
    includes.append(packages() / "triton/backends/nvidia/include")
    command = [
        *("gcc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"),
        # Most functions ignore most of their parameters here.
        *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
        *(f"-I{path}" for path in includes),
        *(str(path) for path in sorted(LIBRARY.glob("*.c"))),
        *("-o", str(made.library), "-ldl", "-lpthread"),
    ]
    subprocess.run(command, check=True)
    (folder / "nvml/libnvidia-ml.so.1").symlink_to(made.library)
    return made


@contextmanager
def temporary() -> Iterator[StandIn]:
    """A library that is there as long as it is used."""
    with tempfile.TemporaryDirectory() as folder:
        yield built(Path(folder))
