"""What a run on machines that vanish will take: goodput, hours and money for an interval between saves. Pure."""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from indextts_job.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPace:
    """How long things take."""

    step_s: float
    """One optimizer step."""
    between_s: float = 0.0
    """What comes on top of every step on average: waiting for data, validation."""
    stall_s: float = 0.0
    """What training waits for a save."""
    save_s: float = 0.0
    """From the begin of a save until it counts."""
    start_s: float = 60.0
    """From the launch of an attempt to its first step."""
    requeue_s: float = 60.0
    """From the end of an attempt to the launch of the next one."""


@dataclass(frozen=True, slots=True)
class Life:
    """How long a machine lives, from the launch of an attempt on."""

    seconds: float
    noticed: bool = False
    """Whether its end is told early enough for a last save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run."""

    wall_s: float
    """From the first launch to the end."""
    machine_s: float
    """Of it, on a machine: what is paid."""
    useful_s: float
    """Of it, in steps that count."""
    attempts: float
    redone_steps: float

    @property
    def goodput(self) -> float:
        """Share of wall time in steps that count."""
        return self.useful_s / self.wall_s


def lives_by_rate(per_day: float, seed: int, *, noticed_share: float = 0.0) -> Iterator[Life]:
    """Lives of exponential length.

    Args:
        per_day: Ends of machines in a day of running; 0 = never.
        seed: Of the lengths.
        noticed_share: Of the ends that come with enough notice.
    """
    chance = random.Random(seed)  # noqa: S311  # a simulation
    while True:
        seconds = chance.expovariate(per_day / 86400) if per_day else float("inf")
        yield Life(seconds, noticed=chance.random() < noticed_share)


def simulate(total_steps: int, interval_steps: int, pace: RunPace, lives: Iterable[Life]) -> Outcome:
    """Play a run through.

    Args:
        total_steps: Of the run.
        interval_steps: Between saves; 0 = only at the end and when an end is noticed.
        pace: How long things take.
        lives: Of the machines, one per attempt; where they end, the last attempt lives for ever.

    Returns:
        What it took.
    """
    done = redone = attempts = 0
    wall_s = machine_s = 0.0
    following = iter(lives)
    while True:
        attempts += 1
        life = next(following, Life(float("inf")))
        step, committed, ran_s = _attempt(done, total_steps, interval_steps, pace, life)
        wall_s += ran_s
        machine_s += ran_s
        redone += step - committed
        done = committed
        if done == total_steps:
            break
        wall_s += pace.requeue_s
    return Outcome(
        wall_s=wall_s,
        machine_s=machine_s,
        useful_s=total_steps * pace.step_s,
        attempts=attempts,
        redone_steps=redone,
    )


def _attempt(done: int, total: int, interval: int, pace: RunPace, life: Life) -> tuple[int, int, float]:
    """Step reached, step committed, and seconds that an attempt ran."""
    each_s = pace.step_s + pace.between_s
    now_s, step, committed = pace.start_s, done, done
    saving: tuple[int, float] | None = None  # step, and when it counts
    while step < total:
        goal = min(total, (step // interval + 1) * interval if interval else total)
        there_s = now_s + (goal - step) * each_s
        if there_s > life.seconds:
            step += max(0, int((life.seconds - now_s) / each_s))
            if saving and saving[1] <= life.seconds:
                committed = saving[0]
            if life.noticed and now_s <= life.seconds:
                return step, step, life.seconds + pace.save_s
            return step, committed, life.seconds
        now_s, step = there_s, goal
        if step == total:
            break
        if saving:  # one save at a time: the one before is waited for
            now_s = max(now_s, saving[1])
            committed = saving[0]
        saving = (step, now_s + pace.save_s)
        now_s += pace.stall_s
    now_s += pace.save_s
    if now_s > life.seconds and not life.noticed:
        if saving and saving[1] <= life.seconds:
            committed = saving[0]
        return step, committed, life.seconds
    return total, total, now_s


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine that could be rented."""

    name: str
    price: float
    """Per hour."""
    speed: float
    """As a multiple of the machine whose pace is given."""
    kills_per_day: float


def parse_offer(text: str) -> Offer:
    """`NAME:PRICE:SPEED:KILLS`.

    Raises:
        ConfigError: It is not that.
    """
    try:
        name, price, speed, per_day = text.split(":")
        offer = Offer(name, float(price), float(speed), float(per_day))
    except ValueError:
        offer = Offer("", -1.0, 0.0, 0.0)
    if offer.price < 0 or offer.speed <= 0 or offer.kills_per_day < 0:
        raise ConfigError(f"--offer {text}: expected NAME:PRICE:SPEED:KILLS, `L4:0.28:1:4` say.")
    return offer


def scaled(pace: RunPace, speed: float) -> RunPace:
    """The pace on a machine that computes so many times as fast; saves and starts stay."""
    return replace(pace, step_s=pace.step_s / speed)


def average(  # noqa: PLR0913, PLR0917  # what a simulation is made of
    total_steps: int,
    interval_steps: int,
    pace: RunPace,
    kills_per_day: float,
    noticed_share: float,
    trials: int,
    lives: Sequence[Life] | None = None,
) -> Outcome:
    """Mean of several plays with random lives, or one with given lives."""
    if lives is not None:
        return simulate(total_steps, interval_steps, pace, lives)
    outcomes = [
        simulate(total_steps, interval_steps, pace, lives_by_rate(kills_per_day, seed, noticed_share=noticed_share))
        for seed in range(trials)
    ]
    return Outcome(
        wall_s=statistics.mean(one.wall_s for one in outcomes),
        machine_s=statistics.mean(one.machine_s for one in outcomes),
        useful_s=outcomes[0].useful_s,
        attempts=statistics.mean(one.attempts for one in outcomes),
        redone_steps=statistics.mean(one.redone_steps for one in outcomes),
    )
