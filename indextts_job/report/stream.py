"""One stream of events, several readers."""

from collections.abc import Sequence
from dataclasses import replace

from indextts_job.errors import AccessRefusedError, UnavailableError
from indextts_job.redaction import redacted
from indextts_job.report.events import AttemptStarted, Emit, Event, Notice


class EventStream:
    """Passes every event to every reader, in order.

    The readers that write to the run need the attempt's number, so they join later and then get all earlier events.
    """

    def __init__(self, console: Emit) -> None:
        self._readers: list[Emit] = [console]
        self._before_start: list[Event] | None = []
        self._failing: list[Emit] = []

    def __call__(self, event: Event) -> None:
        """Emit one event, with secrets removed: messages name URLs as the user gave them."""
        if isinstance(event, Notice):
            event = replace(event, message=redacted(event.message))
        elif isinstance(event, AttemptStarted) and event.resumed_from:
            event = replace(event, resumed_from=redacted(event.resumed_from))
        if self._before_start is not None:
            # The number comes late in a start, and the journal shall have the lines about data and hardware too.
            self._before_start.append(event)
        for reader in self._readers:
            self._hand_over(reader, event)

    def start(self, readers: Sequence[Emit]) -> None:
        """Add the readers of the run and hand them the events so far."""
        for event in self._before_start or ():
            for reader in readers:
                self._hand_over(reader, event)
        self._before_start = None
        self._readers += readers

    def _hand_over(self, reader: Emit, event: Event) -> None:
        """Pass an event to a reader. A failure of the storage is one warning per reader; the training goes on."""
        try:
            reader(event)
        except (UnavailableError, AccessRefusedError) as error:
            # Once per reader: storage that stays away would add a warning to every event.
            if reader not in self._failing:
                self._failing.append(reader)
                message = f"a record was lost: {error} Training goes on."
                # To the console only: the failing reader would fail again.
                self._readers[0](Notice(step=event.step, topic="report", message=message, warning=True))
