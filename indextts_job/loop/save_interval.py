"""Decides when a save is due: by the step, or at the interval that loses least time to saves and kills together."""

import math
import statistics
from collections.abc import Callable

from indextts_job.checkpoint.retention import CheckpointConfig

AUTOMATIC = -1
CHANGE_TOLD = 0.5
"""Relative change of the interval above which it is reported."""


PRIOR_KILLS, PRIOR_S = 1.0, 6 * 3600.0
"""Assumption for a run without a record: one kill in six hours, a bad day for spot machines."""


def best_interval_s(save_cost_s: float, between_kills_s: float) -> float:
    """Seconds of training between two saves.

    Young 1974, "A first order approximation to the optimum checkpoint interval", and with the further terms of Daly
    2006, "A higher order estimate of the optimum checkpoint interval for restart dumps".

    Args:
        save_cost_s: Time that the training waits for a save.
        between_kills_s: Mean time between two ends without a last save. Preemptions with enough notice do not count,
            because they lose nothing.
    """
    # Daly's own bound: beyond it the series does not hold, and he sets the interval to the time between failures.
    if save_cost_s >= 2 * between_kills_s:
        return between_kills_s
    ratio = save_cost_s / (2 * between_kills_s)
    return math.sqrt(2 * save_cost_s * between_kills_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_cost_s


def mean_between_kills_s(kills: int, trained_s: float) -> float:
    """Mean time between kills in the record of a run, with the assumption above added as if it had been observed.

    Args:
        kills: Attempts that ended without a last save.
        trained_s: Time that all attempts ran together.
    """
    return (trained_s + PRIOR_S) / (kills + PRIOR_KILLS)


def bounded_interval_s(
    save_cost_s: float, save_s: float, between_kills_s: float, bounds_s: tuple[float, float]
) -> float:
    """The best interval within the user's bounds, but at least the duration of a save.

    Args:
        save_cost_s: Time that the training waits for a save.
        save_s: Duration of a save, from its start until the checkpoint is visible.
        between_kills_s: As in `best_interval_s`.
        bounds_s: Shortest and longest interval.
    """
    shortest, longest = bounds_s
    # A save that is due while one is in flight would make the training wait; this holds against the bounds too.
    return max(save_s, min(longest, max(shortest, best_interval_s(save_cost_s, between_kills_s))))


class SaveInterval:
    """Decides by the clock of its process. For automatic saves the decision of rank 0 counts."""

    def __init__(self, config: CheckpointConfig, between_kills_s: float, clock: Callable[[], float]) -> None:
        """Start with the shortest interval, until a save has been measured.

        Args:
            config: Interval in steps, or bounds of an automatic one.
            between_kills_s: Mean time between ends without notice; `kills_per_day` overrides it.
            clock: The monotonic clock.
        """
        self._config = config
        self._between_kills_s = 86400 / config.kills_per_day if config.kills_per_day else between_kills_s
        self._clock = clock
        self._began_s = clock()
        self._stalls_s: list[float] = []
        self.seconds = config.shortest_seconds

    @property
    def automatic(self) -> bool:
        """Whether saves are due by time instead of by step."""
        return self._config.interval_steps == AUTOMATIC

    def due(self, step: int) -> bool:
        """Whether to save now, by the clock of this process or by the step."""
        if self.automatic:
            return self._clock() - self._began_s >= self.seconds
        return self._config.interval_steps > 0 and step % self._config.interval_steps == 0

    def began(self) -> None:
        """Note that a save has started."""
        self._began_s = self._clock()

    def measured(self, save_s: float, stall_s: float) -> bool:
        """Compute the interval again after a save; True when it has changed by enough to be reported.

        Args:
            save_s: Duration of the save, from its start until the checkpoint was visible.
            stall_s: Time that the training waited for it.
        """
        self._stalls_s.append(stall_s)
        # The mean of all: a single stall varies with the moment, the interval should not.
        cost_s = statistics.mean(self._stalls_s)
        bounds_s = (self._config.shortest_seconds, self._config.longest_seconds)
        before, self.seconds = self.seconds, bounded_interval_s(cost_s, save_s, self._between_kills_s, bounds_s)
        return self.automatic and abs(self.seconds - before) > CHANGE_TOLD * before
