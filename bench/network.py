"""Two network namespaces whose cable has a limited rate and, through a relay of our own, a delay."""

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from queue import SimpleQueue

from tests.support.networks import ADDRESSES, CABLE, two_networks
from tests.support.waiting import wait_until

PACKET_BYTES = 60_000
"""A large MTU: one process has to relay every packet, and a packet costs it the same whatever its size."""
TUNNEL = "tunnel"
_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
_CLONE_NEWNET = 0x40000000


@contextmanager
def limited_networks(name: str, rate: str, delay_ms: float = 0.0) -> Iterator[tuple[tuple[str, str], str]]:
    """Two namespaces, and the name of the interface between them.

    Args:
        name: Of this pair, at most 8 characters.
        rate: In each direction, as `tc` takes it, such as `1gbit`.
        delay_ms: In each direction. The kernel may have no netem, so packets go through a process that holds them.
    """
    with two_networks(name) as both, _relay(both, delay_ms) if delay_ms else nullcontext():
        interface = TUNNEL if delay_ms else CABLE
        for namespace in both:
            limit = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
            _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", *limit)
        yield both, interface


@contextmanager
def _relay(both: tuple[str, str], delay_ms: float) -> Iterator[None]:
    for namespace in both:
        _run("ip", "-n", namespace, "address", "flush", "dev", CABLE)
    command = [sys.executable, "-m", "bench.network", *both, str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # it is a pipe
            wait_until(lambda: process.stdout.read(1) == b"r", "the relay")  # type: ignore[union-attr]
            for namespace, own, other in zip(both, ADDRESSES, reversed(ADDRESSES), strict=True):
                _run("ip", "-n", namespace, "address", "add", own, "peer", other, "dev", TUNNEL)
                _run("ip", "-n", namespace, "link", "set", TUNNEL, "mtu", str(PACKET_BYTES), "up")
            yield
        finally:
            process.kill()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _tunnel(namespace: str) -> int:
    """A new interface in a namespace, as a file of packets; this thread stays in the namespace."""
    with Path("/var/run/netns", namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH", TUNNEL.encode(), _TUN_WITHOUT_HEADER))
    return tunnel


def _held(source: int, target: int, delay_s: float) -> None:
    """Pass packets on, each after the delay."""
    held: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def pass_on() -> None:
        while True:
            due_s, packet = held.get()
            time.sleep(max(0.0, due_s - time.monotonic()))
            # One end is up before the other; the packets of that moment are lost, as on a real cable.
            with suppress(OSError):
                os.write(target, packet)

    threading.Thread(target=pass_on, daemon=True).start()
    while True:
        packet = os.read(source, PACKET_BYTES + 100)
        held.put((time.monotonic() + delay_s, packet))


def main() -> None:
    """Relay until killed; the arguments are two namespaces and the delay in milliseconds."""
    one, other = (_tunnel(namespace) for namespace in sys.argv[1:3])
    delay_s = float(sys.argv[3]) / 1000
    sys.stdout.write("r")
    sys.stdout.flush()
    threading.Thread(target=_held, args=(one, other, delay_s), daemon=True).start()
    _held(other, one, delay_s)


if __name__ == "__main__":
    main()
