"""One stream of events, several readers."""

from collections.abc import Sequence

from indextts_job.report.events import Emit, Event


class EventStream:
    """Passes every event to every reader, in order.

    The readers that write into the run can only join once the attempt has its number; they get what they missed.
    """

    def __init__(self, console: Emit) -> None:
        self._readers: list[Emit] = [console]
        self._before_start: list[Event] | None = []

    def __call__(self, event: Event) -> None:
        """Emit one event."""
        if self._before_start is not None:
            self._before_start.append(event)
        for reader in self._readers:
            reader(event)

    def start(self, readers: Sequence[Emit]) -> None:
        """Add the readers of the run and hand them the events so far."""
        for event in self._before_start or ():
            for reader in readers:
                reader(event)
        self._before_start = None
        self._readers += readers
