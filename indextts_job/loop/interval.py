"""How often to save: the interval that loses least to saves and to kills together. Pure."""

import math

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
