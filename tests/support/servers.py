"""Real S3 servers on loopback, each in a folder and on ports of its own, stopped by their process."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

KEY, SECRET = "test-key", "test-secret"  # of a server that lives for one test


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, distinct."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclass
class Server:
    """A server process that can be killed and started again with its data."""

    name: str
    command: list[str]
    port: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(temporary), **self.environment},
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {(self.folder / 'log.txt').read_text()[-2000:]}")
            os.sched_yield()

    def kill(self) -> None:
        """SIGKILL, as a machine that goes away."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


def installed(program: str) -> str:
    """Path of a server that the tests' requirements install; its absence is a skip, and in CI a failure."""
    beside = Path(sys.executable).parent / program
    path = str(beside) if beside.exists() else shutil.which(program)
    if path is None:
        message = f"{program} is not installed: pip install -e '.[test]'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def seaweedfs(folder: Path) -> Server:
    """A real store: acknowledged writes survive a kill, conditional writes are honoured."""
    names = ("s3", "master", "volume", "filer", "admin")
    ports = free_ports(2 * len(names))
    command = [installed("weed"), "-logtostderr=true", "mini", f"-dir={folder / 'data'}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    for index, name in enumerate(names):
        command += [f"-{name}.port={ports[2 * index]}", f"-{name}.port.grpc={ports[2 * index + 1]}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    credentials = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    return Server("SeaweedFS", command, ports[0], folder, credentials)


def rclone(folder: Path) -> Server:
    """The adversary: it ignores conditions of writes without a word."""
    (port,) = free_ports(1)
    (folder / "data/bucket").mkdir(parents=True, exist_ok=True)
    command = [installed("rclone"), "serve", "s3", f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}"]
    return Server("rclone", [*command, "--vfs-cache-mode=off", str(folder / "data")], port, folder)


def moto(folder: Path) -> Server:
    """Amazon's interface in memory, with its own ideas of errors and listings."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    return Server("moto", [installed("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, folder)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server, and stop it at the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def client_environment(server: Server) -> dict[str, str]:
    """What a job needs to reach a server: the usual AWS variables."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def main() -> int:
    """`python -m tests.support.servers COMMAND …`: run a command with a SeaweedFS that lives as long as it."""
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as name, running(seaweedfs(Path(name))) as server:
        environment = {**os.environ, **client_environment(server)}
        return subprocess.run(sys.argv[1:], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
