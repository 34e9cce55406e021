"""Simulate a run on machines that are taken away: goodput, hours and money for an interval between saves. Pure."""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from indextts_job.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPace:
    """The durations that a simulation needs."""

    step_s: float
    """One optimizer step."""
    between_s: float = 0.0
    """Mean time that is added to every step: waiting for data, validation."""
    stall_s: float = 0.0
    """Time that training stands still for a save."""
    save_s: float = 0.0
    """Time from the start of a save until it is committed."""
    start_s: float = 60.0
    """Time from the launch of an attempt to its first step."""
    requeue_s: float = 60.0
    """Time from the end of an attempt to the launch of the next one."""


@dataclass(frozen=True, slots=True)
class Life:
    """The time that a machine is there, from the launch of an attempt on."""

    seconds: float
    noticed: bool = False
    """Whether its end is announced early enough for a last save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a simulated run."""

    wall_s: float
    """Time from the first launch to the end."""
    machine_s: float
    """The part of it on a machine, which is paid for."""
    useful_s: float
    """The part of it in steps that were not done again."""
    attempts: float
    """Number of attempts; a mean need not be whole."""
    redone_steps: float

    @property
    def goodput(self) -> float:
        """Share of the wall time in steps that were not done again."""
        return self.useful_s / self.wall_s


def lives_by_rate(per_day: float, seed: int, *, noticed_share: float = 0.0) -> Iterator[Life]:
    """Endless lives of exponential length: the risk of an end is the same at every moment.

    Args:
        per_day: Mean number of ends in a day of running; 0 = never.
        seed: Seed of the lengths.
        noticed_share: Share of the ends that are announced early enough.
    """
    chance = random.Random(seed)  # noqa: S311  # a simulation
    # One number for the length and one for the notice of each life: the lengths are the same for every share.
    while True:
        seconds = chance.expovariate(per_day / 86400) if per_day else float("inf")
        yield Life(seconds, noticed=chance.random() < noticed_share)


def simulate(total_steps: int, interval_steps: int, pace: RunPace, lives: Iterable[Life]) -> Outcome:
    """Simulate one run.

    Args:
        total_steps: Steps of the run.
        interval_steps: Steps between saves; 0 = only at the end of the run and at announced ends of machines.
        pace: Durations of steps, saves and starts.
        lives: Lives of the machines, one per attempt; after the last one a machine that never ends.
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
        wall_s += pace.requeue_s  # in the queue nothing is paid
    return Outcome(
        wall_s=wall_s,
        machine_s=machine_s,
        useful_s=total_steps * pace.step_s,
        attempts=attempts,
        redone_steps=redone,
    )


def _attempt(done: int, total: int, interval: int, pace: RunPace, life: Life) -> tuple[int, int, float]:
    """Step reached, step committed, and seconds that an attempt ran, from the step `done` on."""
    each_s = pace.step_s + pace.between_s
    now_s, step, committed = pace.start_s, done, done
    saving: _Save | None = None
    while step < total:
        goal = _next_save(step, total, interval)
        there_s = now_s + (goal - step) * each_s
        if there_s > life.seconds:
            step += max(0, int((life.seconds - now_s) / each_s))
            # With a notice the last save comes on top of the life: the notice is early enough for it.
            if life.noticed and now_s <= life.seconds:
                return step, step, life.seconds + pace.save_s
            return step, _committed(saving, committed, life.seconds), life.seconds
        now_s, step = there_s, goal
        if step == total:
            break
        if saving:  # there is one save at a time, so a new one waits for the one before
            now_s = max(now_s, saving.committed_at_s)
            committed = saving.step
        saving = _Save(step, now_s + pace.save_s)
        now_s += pace.stall_s
    # The last save is waited for: a run is complete when its final checkpoint is committed.
    now_s += pace.save_s
    if now_s > life.seconds and not life.noticed:
        return step, _committed(saving, committed, life.seconds), life.seconds
    return total, total, now_s


@dataclass(frozen=True, slots=True)
class _Save:
    """A save that runs beside the training."""

    step: int
    committed_at_s: float


def _next_save(step: int, total: int, interval: int) -> int:
    return min(total, (step // interval + 1) * interval if interval else total)


def _committed(saving: _Save | None, before: int, at_s: float) -> int:
    """The committed step at an instant: a running save counts only if it is done by then."""
    return saving.step if saving and saving.committed_at_s <= at_s else before


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of machine that could be rented."""

    name: str
    price: float
    """Price of an hour."""
    speed: float
    """Speed as a multiple of the machine whose pace is given."""
    kills_per_day: float


def parse_offer(text: str) -> Offer:
    """The offer in a text `NAME:PRICE:SPEED:KILLS`.

    Raises:
        ConfigError: The text has another form, or a number is out of range.
    """
    try:
        name, price, speed, per_day = text.split(":")
        offer = Offer(name, float(price), float(speed), float(per_day))
    except ValueError:
        offer = Offer("", -1.0, 0.0, 0.0)  # is refused below, with the same message as wrong numbers
    if offer.price < 0 or offer.speed <= 0 or offer.kills_per_day < 0:
        raise ConfigError(f"--offer {text}: expected NAME:PRICE:SPEED:KILLS, `L4:0.28:1:4` say.")
    return offer


def scaled(pace: RunPace, speed: float) -> RunPace:
    """The pace on a machine that is `speed` times as fast; the durations of saves and starts stay."""
    # Saves and starts depend on storage and network, which a faster machine does not change.
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
    """The mean outcome of `trials` simulations with random lives, or the outcome of one with given lives."""
    if lives is not None:
        return simulate(total_steps, interval_steps, pace, lives)
    # The seeds are the same for every interval and offer, so that differences do not come from the random lives.
    outcomes = [
        simulate(total_steps, interval_steps, pace, lives_by_rate(kills_per_day, seed, noticed_share=noticed_share))
        for seed in range(trials)
    ]
    return _mean(outcomes)


def _mean(outcomes: Sequence[Outcome]) -> Outcome:
    values = {
        field.name: statistics.mean(getattr(outcome, field.name) for outcome in outcomes) for field in fields(Outcome)
    }
    return Outcome(**values)
