"""What a tracker is for this program, and the reader that feeds one."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from indextts_job.report.events import AttemptEnded, Event
from indextts_job.report.points import kind_of, points_of

logger = logging.getLogger(__name__)

MOST_WAITING = 100_000
"""Points that are kept for a tracker that is away: a train line a second for a day. The oldest are lost first."""
END_S = 10.0
"""How long the end of an attempt waits for a tracker. Everything is committed by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """The run as a tracker knows it. All attempts of a run are one run there."""

    id: str
    """Letters and digits, the same for all attempts."""
    name: str
    project: str
    config: Mapping[str, Any]
    """The run's configuration by dotted key, without secrets."""
    earlier: "Sequence[Point]" = ()
    """Points of earlier attempts by their journals, each step of a kind once, in their order. A tracker may lack some:
    it was away, or the process was killed before it had them, or it was asked for later."""


Point = tuple[int, Mapping[str, float]]
"""A step, and values by tag."""


class Tracker(Protocol):
    """One run in a tracker."""

    def known(self) -> Mapping[str, int]:
        """Last step of each kind of point, `train` and `val`, that the tracker has; no kind of which it has none."""

    def log(self, step: int, points: Mapping[str, float]) -> None:
        """Add the points of a step. Any exception means that they were not taken."""

    def end(self, outcome: str) -> None:
        """The attempt is over: `complete`, `stopped` or `failed`."""


Open = Callable[[Tracked], Tracker]


class TrackerReader:
    """Hands the figures of the events to a tracker, in a thread."""

    def __init__(self, name: str, opened: Open, tracked: Callable[[], Tracked]) -> None:
        """The tracker is opened in the thread: it may ask a server that does not answer.

        Args:
            name: The tracker's, for messages.
            opened: Opens it.
            tracked: The run; called in the thread too.
        """
        self._name, self._open, self._tracked = name, opened, tracked
        self._events: queue.Queue[Event] = queue.Queue(MOST_WAITING)
        self._complained = False
        # Not an executor: the interpreter would wait for its thread at exit.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take an event, without waiting."""
        if not points_of(event) and not isinstance(event, AttemptEnded):
            return
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._complain("has not taken a point for very long; later ones are not kept for it")
        if isinstance(event, AttemptEnded):
            self._thread.join(END_S)

    def _run(self) -> None:
        tracker: Tracker | None = None
        waiting: list[Point] = []
        known: dict[str, int] = {}
        while True:
            event = self._events.get()
            waiting = _with_points(waiting, event)
            try:
                if tracker is None:
                    tracked = self._tracked()
                    tracker = self._open(tracked)
                    known = dict(tracker.known())
                    waiting = [*tracked.earlier, *waiting]
                waiting = _logged(tracker, waiting, known)
                if isinstance(event, AttemptEnded):
                    tracker.end(event.outcome)
                    return
            # Whatever a foreign library raises, SystemExit too: it is not worth a training.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self._complain(f"did not take the points of a step ({type(error).__name__}: {error})")
                if isinstance(event, AttemptEnded):
                    return

    def _complain(self, what: str) -> None:
        """Say once what went wrong."""
        if not self._complained:
            logger.warning("%s %s; training goes on, and they are sent again with later ones.", self._name, what)
        self._complained = True


def _with_points(waiting: list[Point], event: Event) -> list[Point]:
    points = points_of(event)
    return [*waiting, (event.step, points)][-MOST_WAITING:] if points else waiting


def _logged(tracker: Tracker, waiting: list[Point], known: dict[str, int]) -> list[Point]:
    """Log what waits, except what is there already: a resumed attempt computes it again, to the same bits.

    Returns:
        What is left: nothing.
    """
    while waiting:
        step, points = waiting[0]
        kind = kind_of(points)
        if step > known.get(kind, -1):
            tracker.log(step, points)
            known[kind] = step
        del waiting[0]
    return waiting
