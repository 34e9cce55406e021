"""When the next save is due: at steps, or after the time that loses least to saves and kills together."""

import math
import statistics
from collections.abc import Callable

from indextts_job.checkpoint.retention import CheckpointConfig

AUTOMATIC = -1
CHANGE_TOLD = 0.5
"""Share of the interval by which it has to change to be worth a line."""


PRIOR_KILLS, PRIOR_S = 1.0, 6 * 3600.0
"""What is assumed before anything was seen: a kill in six hours, as spot machines have it on a bad day."""


def best_interval_s(save_cost_s: float, between_kills_s: float) -> float:
    """Seconds of training between two saves.

    Young 1974, "A first order approximation to the optimum checkpoint interval", and with the further terms of Daly
    2006, "A higher order estimate of the optimum checkpoint interval for restart dumps".

    Args:
        save_cost_s: Training time that a save costs: what training waits for it.
        between_kills_s: Mean time between two ends without a last save. Preemptions with enough notice do not count:
            they lose nothing.
    """
    if save_cost_s >= 2 * between_kills_s:
        return between_kills_s
    ratio = save_cost_s / (2 * between_kills_s)
    return math.sqrt(2 * save_cost_s * between_kills_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_cost_s


def mean_between_kills_s(kills: int, trained_s: float) -> float:
    """From what a run has seen so far, beginning with an assumption that its own record outweighs in time.

    Args:
        kills: Attempts that ended without a last save.
        trained_s: Time that all attempts ran.
    """
    return (trained_s + PRIOR_S) / (kills + PRIOR_KILLS)


def bounded_interval_s(
    save_cost_s: float, save_s: float, between_kills_s: float, bounds_s: tuple[float, float]
) -> float:
    """The best interval within the user's bounds, and never shorter than a save lasts.

    Args:
        save_cost_s: What training waits for a save.
        save_s: From its begin until it is visible.
        between_kills_s: See `best_interval_s`.
        bounds_s: Shortest and longest.
    """
    shortest, longest = bounds_s
    return max(save_s, min(longest, max(shortest, best_interval_s(save_cost_s, between_kills_s))))


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
