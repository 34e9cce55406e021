"""Summarises the state of a run: as values for programs, and in a few lines for people. Pure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from indextts_job.parsing import plain
from indextts_job.report.attempts import Attempt, total_steps
from indextts_job.report.console import human_seconds
from indextts_job.report.events import TrainLine
from indextts_job.report.goodput import goodput_text, where_time_went

SILENT_S = 300.0
"""An attempt without an event for this long, and without an end, was killed, hangs, or has very long steps."""
TRAINING, SILENT, KILLED = "training", "silent", "killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a run. Values that are not known yet are None."""

    state: str
    """`training`; `silent`: no event for long; `killed`: the process is gone and has recorded no end; or the end of the
    last attempt: `complete`, `stopped`, `failed`, …"""
    exit_code: int | None
    """Exit code of the last attempt, once it has ended."""
    message: str | None
    """What the last attempt said at its end; None while it runs, and after a good end."""
    since_seconds: float | None
    """Time since its end, or since its last event."""
    step: int
    total_steps: int | None
    epoch: float | None
    losses: Mapping[str, float] | None
    """Means of the last train line: `text_loss`, `mel_loss`, `mel_top1`, `total`."""
    learning_rate: float | None
    validation_total: float | None
    validation_step: int | None
    validation_is_best: bool | None
    speaking_step: int | None
    speaking_broken: Sequence[str] | None
    """Limits that the model broke when it last spoke by itself, in words."""
    samples_per_second: float | None
    """This value and the next two are known only while an attempt runs."""
    tokens_per_second: float | None
    left_seconds: float | None
    checkpoint_step: int | None
    checkpoint_age_seconds: float | None
    attempts: int
    steps_done_again: int
    failed_attempts: int
    """Attempts that ended with an error."""
    out_of_memory: int
    """How often work was done again in smaller pieces, because a device had too little memory."""
    goodput: float | None
    """Share of the time spent on steps that count."""
    goodput_words: str
    model: str | None = None
    """Version of the model; None where an attempt of an earlier release has not recorded it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        # Words are for people; programs have the number.
        del values["goodput_words"]
        return values

    def lines(self) -> list[tuple[str, str]]:
        """A name and a text for each line; values that are not known have no line."""
        lines = {
            "state": self._state(),
            "why": self.message or "",
            "model": self.model or "",
            "step": self._step(),
            "losses": self._losses(),
            "validation": self._validation(),
            "speaking": self._speaking(),
            "rate": self._rate(),
            "checkpoint": self._checkpoint(),
            "attempts": self._attempts(),
            "goodput": self.goodput_words,
        }
        return [(name, text) for name, text in lines.items() if text]

    def _step(self) -> str:
        if not self.total_steps:
            return ""
        epoch = "" if self.epoch is None else f", epoch {self.epoch:.2f}"
        return f"{self.step} of {self.total_steps} ({self.step / self.total_steps:.0%}){epoch}"

    def _losses(self) -> str:
        if self.losses is None:
            return ""
        text, mel, top1 = (self.losses[key] for key in ("text_loss", "mel_loss", "mel_top1"))
        return f"text {text:.4f}, mel {mel:.4f}, top-1 {top1:.1%}, learning rate {self.learning_rate:.3g}"

    def _validation(self) -> str:
        if self.validation_total is None:
            return ""
        best = " (the best so far)" if self.validation_is_best else ""
        return f"{self.validation_total:.4f} at step {self.validation_step}{best}"

    def _speaking(self) -> str:
        if self.speaking_broken is None:
            return ""
        verdict = f"breaks limits: {'; '.join(self.speaking_broken)}" if self.speaking_broken else "inside all limits"
        return f"{verdict}, at step {self.speaking_step}"

    def _rate(self) -> str:
        if self.left_seconds is None:
            return ""
        rate = f"{self.samples_per_second:.1f} samples/s, {self.tokens_per_second:.0f} tokens/s"
        return f"{rate}, left {human_seconds(self.left_seconds)}"

    def _attempts(self) -> str:
        failed = f", {self.failed_attempts} failed" if self.failed_attempts else ""
        memory = f", out of memory {self.out_of_memory} x" if self.out_of_memory else ""
        return f"{self.attempts}, {self.steps_done_again} steps done again{failed}{memory}"

    def _checkpoint(self) -> str:
        if self.checkpoint_age_seconds is None:
            return ""
        return f"step {self.checkpoint_step}, {_ago(self.checkpoint_age_seconds)}"

    def _state(self) -> str:
        ago = _ago(self.since_seconds)
        if self.state == TRAINING:
            return f"training, last heard of {ago}"
        if self.state == SILENT:
            return f"silent: last heard of {ago}; it was killed, or hangs"
        if self.state == KILLED:
            return f"killed: its process is gone; last heard of {ago}"
        return self.state if self.state == "complete" else f"{self.state} with exit code {self.exit_code}, {ago}"


def standing(rows: Sequence[Attempt], now: datetime, *, running: bool | None = None) -> Standing:
    """The state of a run.

    Args:
        rows: Attempts, oldest first; at least one.
        now: The present, with a time zone.
        running: Whether the process of the last attempt runs; None if unknown.
    """
    last = rows[-1]
    spent = where_time_went(rows)
    total_s = sum(spent.values())
    return Standing(
        state=last.outcome or _state_of_silence(last, now, running),
        exit_code=last.exit_code,
        message=last.message or None,
        # The end of an attempt is exact; without one the last event is the best that is known.
        since_seconds=_seconds_since(last.ended if last.outcome else last.heard, now),
        step=last.last_step,
        total_steps=total_steps(rows),
        **_training_values(rows),
        **_rate_values(rows, live=not last.outcome and running is not False),
        **_validation_values(rows),
        **_speaking_values(rows),
        **_checkpoint_values(rows, now),
        model=last.record.model or None,
        **_counts(rows),
        goodput=spent["steps"] / total_s if total_s else None,
        goodput_words=goodput_text(rows),
    )


def _train_line(rows: Sequence[Attempt]) -> TrainLine | None:
    """The last train line of any attempt."""
    return next((row.train.event for row in reversed(rows) if row.train), None)


def _training_values(rows: Sequence[Attempt]) -> dict[str, Any]:
    line = _train_line(rows)
    if line is None:
        return dict.fromkeys(("epoch", "losses", "learning_rate"))
    return {"epoch": line.epoch, "losses": plain(line.losses), "learning_rate": line.learning_rate}


def _rate_values(rows: Sequence[Attempt], *, live: bool) -> dict[str, Any]:
    """Rates are known only while an attempt runs."""
    # The rate of an attempt that has ended would promise an end that is not coming.
    line = _train_line(rows) if live else None
    if line is None:
        return dict.fromkeys(("samples_per_second", "tokens_per_second", "left_seconds"))
    return {
        "samples_per_second": line.samples_per_s,
        "tokens_per_second": line.tokens_per_s,
        "left_seconds": line.eta_s,
    }


def _validation_values(rows: Sequence[Attempt]) -> dict[str, Any]:
    last = next((row.validation.event for row in reversed(rows) if row.validation), None)
    if last is None:
        return dict.fromkeys(("validation_total", "validation_step", "validation_is_best"))
    return {"validation_total": last.losses.total, "validation_step": last.step, "validation_is_best": last.best}


def _speaking_values(rows: Sequence[Attempt]) -> dict[str, Any]:
    last = next((row.speaking.event for row in reversed(rows) if row.speaking), None)
    if last is None:
        return dict.fromkeys(("speaking_step", "speaking_broken"))
    return {"speaking_step": last.step, "speaking_broken": list(last.broken)}


def _checkpoint_values(rows: Sequence[Attempt], now: datetime) -> dict[str, Any]:
    last = next((row.checkpoint for row in reversed(rows) if row.checkpoint), None)
    if last is None:
        return dict.fromkeys(("checkpoint_step", "checkpoint_age_seconds"))
    return {"checkpoint_step": last.event.step, "checkpoint_age_seconds": _seconds_since(last.time, now)}


def _counts(rows: Sequence[Attempt]) -> dict[str, Any]:
    return {
        "attempts": len(rows),
        "steps_done_again": sum(lost_steps(rows)),
        "failed_attempts": sum(row.outcome == "failed" for row in rows),
        "out_of_memory": sum(row.out_of_memory for row in rows),
    }


def _state_of_silence(row: Attempt, now: datetime, running: bool | None) -> str:  # noqa: FBT001  # private
    # None means unknown: on another machine only the silence counts.
    if running is False:
        return KILLED
    heard_s = _seconds_since(row.heard, now)
    return TRAINING if heard_s is not None and heard_s <= SILENT_S else SILENT


def lost_steps(rows: Sequence[Attempt]) -> list[int]:
    """Steps of each attempt that the next one did again, also when a user asked it to go back.

    Args:
        rows: Attempts, oldest first. The last one has lost nothing yet.
    """
    pairs = itertools.pairwise(rows)
    return [*(max(0, row.last_step - after.from_step) for row, after in pairs), *([0] if rows else [])]


def how_it_ended(row: Attempt, *, newest: bool, running: bool | None = None) -> str:
    """The end of an attempt in a few words.

    Args:
        newest: Whether it is the last attempt.
        running: For the last attempt: whether its process runs; None if unknown.
    """
    if row.outcome:
        return f"{row.outcome} ({row.exit_code})"
    if not newest or running is False:
        return "killed"
    return "runs" if running else "runs, or was killed"


def _seconds_since(instant: str, now: datetime) -> float | None:
    """Seconds since a time; None where it is not known."""
    return max(0.0, (now - datetime.fromisoformat(instant)).total_seconds()) if instant else None


def _ago(seconds: float | None) -> str:
    return "at an unknown time" if seconds is None else f"{human_seconds(seconds)} ago"
