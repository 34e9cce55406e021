"""Where a run stands, in the few lines that people look for. Pure: from the rows of its attempts and the time."""

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from indextts_job.report.console import human_seconds
from indextts_job.report.goodput import goodput_text

SILENT_S = 300.0
"""An attempt that has said nothing for so long, and no end, was killed, or hangs, or has very long steps."""
Row = Mapping[str, Any]


def standing(rows: Sequence[Row], now: datetime) -> list[tuple[str, str]]:
    """Lines of a name and a text.

    Args:
        rows: Of `attempts`, oldest first; at least one.
        now: With a time zone.
    """
    lines = [("state", _state(rows[-1], now))]
    total = _last(rows, "total_steps")
    train, validation, checkpoint = (_last(rows, key) for key in ("train", "validation", "checkpoint"))
    step = rows[-1]["last_step"]
    if total:
        epoch = f", epoch {train['epoch']:.2f}" if train else ""
        lines.append(("step", f"{step} of {total} ({step / total:.0%}){epoch}"))
    if train:
        losses = train["losses"]
        text = f"text {losses['text_loss']:.4f}, mel {losses['mel_loss']:.4f}, top-1 {losses['mel_top1']:.1%}"
        lines.append(("losses", f"{text}, learning rate {train['learning_rate']:.3g}"))
    if validation:
        best = " (the best so far)" if validation["best"] else ""
        lines.append(("validation", f"{validation['losses']['total']:.4f} at step {validation['step']}{best}"))
    if train and not rows[-1]["outcome"]:
        left = f"left {human_seconds(train['eta_s'])}"
        lines.append(("rate", f"{train['samples_per_s']:.1f} samples/s, {train['tokens_per_s']:.0f} tokens/s, {left}"))
    if checkpoint:
        lines.append(("checkpoint", f"step {checkpoint['step']}, {_ago(checkpoint['time'], now)}"))
    redone = sum(lost_steps(rows))
    lines.append(("attempts", f"{len(rows)}, {redone} steps done again"))
    if goodput := goodput_text(rows):
        lines.append(("goodput", goodput))
    return lines


def _state(row: Row, now: datetime) -> str:
    if row["outcome"] == "complete":
        return "complete"
    if row["outcome"]:
        return f"{row['outcome']} with exit code {row['exit_code']}, {_ago(row['ended'], now)}"
    if _seconds_since(row["heard"], now) > SILENT_S:
        return f"silent: last heard of {_ago(row['heard'], now)}; it was killed, or hangs"
    return f"training, last heard of {_ago(row['heard'], now)}"


def lost_steps(rows: Sequence[Row]) -> list[int]:
    """Steps of each attempt that the next one had to do again, also where it was asked to go back behind them.

    Args:
        rows: Of `attempts`, oldest first; of the last one nothing is lost yet.
    """
    pairs = itertools.pairwise(rows)
    return [*(max(0, int(row["last_step"]) - int(after["from_step"])) for row, after in pairs), *([0] if rows else [])]


def _last(rows: Sequence[Row], key: str) -> Any:  # noqa: ANN401  # JSON
    return next((row[key] for row in reversed(rows) if row.get(key)), None)


def _seconds_since(instant: str, now: datetime) -> float:
    return max(0.0, (now - datetime.fromisoformat(instant)).total_seconds())


def _ago(instant: str, now: datetime) -> str:
    return f"{human_seconds(_seconds_since(instant, now))} ago"
