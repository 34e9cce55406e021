"""Two machines as far as the network goes: namespaces of this one, joined by a virtual cable."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.231.77.1", "10.231.77.2")
CABLE = "cable"
"""Name of the network interface in each of them."""


def _ip(*given: str) -> None:
    subprocess.run(["ip", *given], check=True, capture_output=True)


@contextmanager
def two_networks(name: str) -> Iterator[tuple[str, str]]:
    """Names of two namespaces that reach each other at `ADDRESSES`, and nothing else.

    Args:
        name: Of this pair, at most 8 characters.
    """
    both = (f"{name}-0", f"{name}-1")
    try:
        for namespace in both:
            _ip("netns", "add", namespace)
        _ip("link", "add", CABLE, "netns", both[0], "type", "veth", "peer", "name", CABLE, "netns", both[1])
        for namespace, address in zip(both, ADDRESSES, strict=True):
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", CABLE)
            for device in ("lo", CABLE):
                _ip("-n", namespace, "link", "set", device, "up")
        yield both
    finally:
        for namespace in both:
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def inside(namespace: str, *command: str) -> list[str]:
    """A command, in a namespace."""
    return ["ip", "netns", "exec", namespace, *command]
