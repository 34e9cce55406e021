"""Figures of spoken codes as numbers with names, for curves and lines. Pure."""

from indextts_job.checkpoint.history import Speech
from indextts_job.report.events import Spoke

COUNTS = ("no_stop", "early_stop", "loops", "silence", "special")
VALUES = (
    *("length_ratio", "length_p5", "length_p95", "longest_run_s", "distinct", "prefix_same", "entropy", "agreement"),
    *("agreement_training_positions", "tail_codes"),
)
ALL = "all"
"""Stands for all languages together."""


def speech_values(speech: Speech) -> dict[str, float]:
    """The figures that are known; counts of records as shares."""
    shares = {name: getattr(speech, name) / max(1, speech.records) for name in COUNTS}
    values = {name: getattr(speech, name) for name in VALUES}
    return shares | {name: value for name, value in values.items() if value is not None}


def by_language(event: Spoke) -> dict[str, Speech]:
    """The figures of an event, by language; `all` stands for all of them."""
    return {ALL: event.whole, **{speech.language: speech for speech in event.languages}}


def speech_text(speech: Speech) -> str:
    """A language in a few words."""
    agreement = "" if speech.agreement is None else f", agreement {speech.agreement:.3f}"
    other = speech.agreement_training_positions
    shifted = "" if other is None else f" ({other:.3f} in training's positions)"
    stopped = f"{speech.records - speech.no_stop} of {speech.records} stop"
    return f"{speech.language or 'no language'} {stopped}, length {speech.length_ratio:.2f}{agreement}{shifted}"


def verdict(event: Spoke) -> str:
    """Whether limits are broken, and which."""
    return f"fails: {'; '.join(event.broken)}" if event.broken else "inside all limits"
