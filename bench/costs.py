"""How long a training takes on a card, by the card's peak and the share of it that was measured on an H200 (MFU).

An estimate for every other card, and one from above: slower memory, fewer utterances in a micro-batch and activations
that are computed again lower the share. The log of a run has the true rate after a few steps.

    python -m bench.costs [--hours 20] [--epochs 10] [--mfu 0.37]
"""

import argparse
import math

import numpy as np

from bench.workload import FULL, utterances
from indextts_job.hardware.peak import TENSOR_TFLOPS
from indextts_job.model.flops import training_flops

MFU = 0.37
"""Of one H200, 64 utterances a step, not compiled (docs/gpus.md)."""
CARDS = ("T4", "L4", "RTX 4090", "A100", "L40S", "H100")
CLIPS = 10_000


def flops_of_an_hour() -> tuple[float, float]:
    """Operations to train one hour of speech once, and its number of clips; 2 to 15 s, 7.3 s on average."""
    clips = utterances(CLIPS, FULL)
    lengths = np.array([[len(clip.text_ids), len(clip.codes)] for clip in clips])
    hours = float(lengths[:, 1].sum()) / FULL.version.codes_per_second / 3600
    return training_flops(FULL, FULL.number_text_tokens + 1, lengths) / hours, CLIPS / hours


def rows(hours: float, epochs: float, mfu: float) -> list[str]:
    """A line of a table for each card."""
    flops, clips = flops_of_an_hour()
    found = []
    for card in CARDS:
        seconds_per_hour = flops / (TENSOR_TFLOPS[card] * 1e12 * mfu)
        total_h = seconds_per_hour * hours * epochs / 3600
        found.append(f"| {card} | {clips / seconds_per_hour:.0f} | {total_h:.1f} h |")
    return found


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}, expected a number above 0")
    return value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=positive, default=20, help="hours of speech")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--mfu", type=positive, default=MFU, help="share of the peak")
    given = parser.parse_args()
    print(f"| card | utterances/s | {given.hours:g} h of speech, {given.epochs:g} epochs |")
    print("| --- | --- | --- |")
    print("\n".join(rows(given.hours, given.epochs, given.mfu)))


if __name__ == "__main__":
    main()
