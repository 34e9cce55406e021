"""When the next save is due: by steps, or by the time that loses least."""

import statistics
from collections.abc import Callable

from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.loop.interval import bounded_interval_s

AUTOMATIC = -1
CHANGE_TOLD = 0.5
"""Share of the interval by which it has to change to be worth a line."""


class SaveInterval:
    """Decides on rank 0's clock; the others are told."""

    def __init__(self, config: CheckpointConfig, between_kills_s: float, clock: Callable[[], float]) -> None:
        """Nothing is measured yet: the first save comes after the shortest interval.

        Args:
            config: Steps, or bounds of an automatic interval.
            between_kills_s: Mean time between ends without notice.
            clock: Monotonic.
        """
        self._config = config
        self._between_kills_s = 86400 / config.kills_per_day if config.kills_per_day else between_kills_s
        self._clock = clock
        self._began_s = clock()
        self._stalls_s: list[float] = []
        self.seconds = config.shortest_seconds

    @property
    def automatic(self) -> bool:
        """Whether time decides, not the step."""
        return self._config.interval_steps == AUTOMATIC

    def due(self, step: int) -> bool:
        """Whether to save now, as far as this process can tell."""
        if self.automatic:
            return self._clock() - self._began_s >= self.seconds
        return self._config.interval_steps > 0 and step % self._config.interval_steps == 0

    def began(self) -> None:
        """A save begins."""
        self._began_s = self._clock()

    def measured(self, save_s: float, stall_s: float) -> bool:
        """A save has ended; True when the interval has changed by so much that users want to know.

        Args:
            save_s: From its begin until it was visible.
            stall_s: That training waited for it; the mean of all so far counts.
        """
        self._stalls_s.append(stall_s)
        cost_s = statistics.mean(self._stalls_s)
        bounds_s = (self._config.shortest_seconds, self._config.longest_seconds)
        before, self.seconds = self.seconds, bounded_interval_s(cost_s, save_s, self._between_kills_s, bounds_s)
        return self.automatic and abs(self.seconds - before) > CHANGE_TOLD * before
