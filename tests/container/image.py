"""The image of the Dockerfile, really built and run: podman and runc as root, on a base made by debootstrap.

There is no registry here: base and wheels come through the same build arguments that users have.
"""

import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support.warm_parent import REPOSITORY

PROGRAMS = ("podman", "buildah", "runc", "debootstrap")
BASE = "localhost/indextts-job-test-base:bookworm"
IMAGE = "localhost/indextts-job-test:latest"
REVISION = "0123456789abcdef0123456789abcdef01234567"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""Containers cannot raise limits above those of who starts them."""


def call(*command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


def build(folder: Path) -> None:
    """Make the base, fetch the wheels, build the image."""
    if call("podman", "image", "exists", BASE, check=False).returncode:
        root = folder / "root"
        call("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root))
        archive = folder / "root.tar"
        call("tar", "-C", str(root), "-cf", str(archive), ".")
        call("podman", "import", str(archive), BASE)
        shutil.rmtree(root)
        archive.unlink()
    wheels = folder / "wheels"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"], "wheel"]
    constraints = str(REPOSITORY / "constraints.txt")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "-c", constraints)
    call(*pip, "torch")
    call(*pip, *needed)
    options = ["--runtime", "runc", "--isolation", "oci", "--network", "host", *LIMITS, "--layers"]
    options += ["--volume", f"{wheels}:/wheels:ro", "--build-arg", f"BASE_IMAGE={BASE}"]
    # The wheels are those of this machine: a CPU build of torch, whose hashes no lock has.
    options += ["--build-arg", f"REVISION={REVISION}", "--build-arg", "LOCK="]
    options += ["--build-arg", "PIP_OPTIONS=--no-index --find-links=/wheels", "--tag", IMAGE]
    call("buildah", "bud", *options, str(REPOSITORY))


@dataclass(frozen=True)
class Container:
    """One container of the image, as a restricted cluster would run it: not root, nothing writable but /tmp."""

    name: str

    @classmethod
    def start(cls, name: str, *arguments: str, environment: dict[str, str], volumes: tuple[str, ...]) -> "Container":
        """Start in the background."""
        command = ["podman", "run", "--detach", "--name", name, "--runtime", "runc", "--network", "host", *LIMITS]
        command += ["--read-only", "--tmpfs", "/tmp:rw,size=1g", "--cap-drop", "all"]  # noqa: S108  # in the container
        command += ["--security-opt", "no-new-privileges"]
        for key, value in environment.items():
            command += ["--env", f"{key}={value}"]
        for volume in volumes:
            command += ["--volume", volume]
        call(*command, IMAGE, *arguments)
        return cls(name)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return int(call("podman", "wait", self.name).stdout)

    def stop(self, seconds: int) -> int:
        """SIGTERM, SIGKILL after so many seconds; its exit code."""
        call("podman", "stop", "--time", str(seconds), self.name)
        return self.wait()

    def log(self) -> str:
        """What it printed."""
        done = call("podman", "logs", self.name)
        return done.stdout + done.stderr

    def remove(self) -> None:
        """Whatever it is doing."""
        call("podman", "rm", "--force", self.name, check=False)
