"""Cross entropy of a head with its gradient made in forward, against torch's own ways: seconds and memory on a CPU.

`fused` is torch's `linear_cross_entropy`, with the products of the head once more for the arg-max; `plain` keeps all
logits. Liger's kernel is the same method, written in Triton: it does not run on a CPU.

    python -m bench.heads [--rows 4096] [--classes 8194] [--width 512] [--rounds 5]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from bench.timing import alternate
from indextts_job.model.head import HeadTables, head_loss


def main() -> None:
    """Print seconds of forward and backward, and the most memory in use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=8194)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(given.rows, given.width, generator=generator, requires_grad=True)
    weight = (torch.randn(given.classes, given.width, generator=generator) * 0.02).requires_grad_()
    bias = torch.zeros(given.classes, requires_grad=True)
    targets = torch.randint(0, given.classes, (given.rows,), generator=generator)

    def ours() -> None:
        loss, *_ = head_loss(hidden, HeadTables(weight, bias), targets)
        loss.backward()  # type: ignore[no-untyped-call]

    def fused() -> None:
        options = nn.LinearCrossEntropyOptions()
        loss = F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias, reduction="sum", options=options)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            _hits(F.linear(hidden, weight, bias), targets)

    def plain() -> None:
        logits = F.linear(hidden, weight, bias)
        F.cross_entropy(logits, targets, reduction="sum").backward()  # type: ignore[no-untyped-call]
        _hits(logits.detach(), targets)

    ways = {"ours": ours, "fused": fused, "plain": plain}
    seconds = alternate(ways, given.rounds)
    print(f"{given.rows} rows, {given.classes} classes, width {given.width}, float32")
    for name, work in ways.items():
        ratio = seconds[name] / seconds["ours"]
        print(f"{name:<8}{seconds[name]:>8.3f} s {ratio:>6.2f} x ours{_peak_bytes(work) / 2**20:>8.0f} MiB at most")


def _hits(logits: Tensor, targets: Tensor) -> int:
    return int((logits.argmax(1) == targets).sum())


def _peak_bytes(work: Callable[[], None]) -> int:
    """Most memory of this process during `work`, above what it had before; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
