"""Notices a training loss that jumps and stays there: one bad batch is nothing, a loss that does not return is."""

from collections import deque

RATIO = 1.5
"""A line of the log is high when its loss is this many times that of the lines before."""
LINES = 3
"""High lines in a row that are told."""
USUAL = 10
"""Lines before that are compared with; with fewer than half of them nothing is told."""


class SpikeWatch:
    """Looks at the losses of one attempt's lines. Only tells: what a run does never depends on the attempt."""

    def __init__(self, before: float | None = None) -> None:
        """Without a line of this attempt.

        Args:
            before: Loss of the last line before a resume: a rise may begin right there. None in a fresh run.
        """
        known = () if before is None else (before,) * (USUAL // 2)
        self._usual: deque[float] = deque(known, maxlen=USUAL)
        self._high: list[float] = []

    def after(self, loss: float) -> str:
        """What to tell after a line; empty for nothing.

        Args:
            loss: Weighted training loss of the line.
        """
        usual = sum(self._usual) / max(1, len(self._usual))
        if len(self._usual) < USUAL // 2 or loss <= RATIO * usual:
            self._take(loss)
            return ""
        self._high.append(loss)
        if len(self._high) < LINES:
            return ""
        told = (
            f"the training loss has been more than {RATIO - 1:.0%} above that of the lines before for {LINES} lines: "
            f"{loss:.3f} instead of {usual:.3f}. If it does not return, fork the run from an earlier checkpoint with a "
            "lower schedule.learning_rate"
        )
        self._usual.clear()  # where it is now is usual from here on
        self._take(loss)
        return told

    def _take(self, loss: float) -> None:
        self._high.clear()
        self._usual.append(loss)
