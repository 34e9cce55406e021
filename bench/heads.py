"""Cross entropy of a head without all its logits: torch's fused kernel and an arg-max, against recomputed chunks.

python -m bench.heads [--rows 4096] [--classes 8194] [--width 512]
"""

import argparse
from unittest import mock

import torch

from bench.timing import alternate
from indextts_job.model import unified_voice
from indextts_job.model.unified_voice import head_loss


def main() -> None:
    """Print seconds of forward and backward, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=8194)
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(given.rows, given.width, generator=generator, requires_grad=True)
    weight = (torch.randn(given.classes, given.width, generator=generator) * 0.02).requires_grad_()
    bias = torch.zeros(given.classes, requires_grad=True)
    targets = torch.randint(0, given.classes, (given.rows,), generator=generator)

    def run(*, fused: bool) -> None:
        with mock.patch.object(unified_voice, "HAS_FUSED_CROSS_ENTROPY", fused):
            loss, _ = head_loss(hidden, weight, bias, targets)
            loss.backward()  # type: ignore[no-untyped-call]

    seconds = alternate({"fused": lambda: run(fused=True), "recomputed": lambda: run(fused=False)}, 5)
    print(
        f"{given.rows} rows, {given.classes} classes, width {given.width}: fused {seconds['fused']:.3f} s, "
        f"recomputed {seconds['recomputed']:.3f} s, ratio {seconds['recomputed'] / seconds['fused']:.2f}x"
    )


if __name__ == "__main__":
    main()
