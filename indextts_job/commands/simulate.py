"""`indextts-job simulate`: predicts time and cost of a run on machines that may be taken away."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands, at_least
from indextts_job.commands.storage_options import add_storage_options, open_run

if TYPE_CHECKING:
    from indextts_job.simulation.world import Life, Outcome, RunPace

INTERVALS = (50, 100, 250, 500, 1000, 2000, 5000)
TRIALS = 20
"""Random runs that each result is the mean of."""


def add(commands: Commands) -> None:
    """Add the command."""
    simulate = commands.add_parser(
        "simulate",
        help="predict goodput, hours and cost for intervals between saves, machines and prices",
        description="Simulate a run on machines that may be taken away. Give the pace, or a RUN to take it from.",
    )
    simulate.add_argument("run", nargs="?", default="", help="run to take steps, pace and rate of kills from")
    simulate.add_argument("--steps", type=at_least(1), help="optimizer steps of the run")
    simulate.add_argument("--step-seconds", type=at_least(1e-6, float), help="of one step")
    simulate.add_argument("--stall-seconds", type=at_least(0, float), help="that training waits for a save")
    simulate.add_argument("--save-seconds", type=at_least(0, float), help="until a save counts")
    simulate.add_argument(
        "--start-seconds", type=at_least(0, float), help="from the launch of an attempt to its first step"
    )
    simulate.add_argument("--requeue-seconds", type=at_least(0, float), help="from an end to the next launch")
    simulate.add_argument("--kills-per-day", type=at_least(0, float), help="ends of the machine per day of running")
    simulate.add_argument("--noticed", type=float, default=0.0, metavar="SHARE", help="of the ends with enough notice")
    simulate.add_argument("--trace", help="file with seconds that machines lived, a line each, `noticed` behind some")
    simulate.add_argument(
        "--intervals",
        type=at_least(1),
        nargs="+",
        default=list(INTERVALS),
        help="steps between saves (default: %(default)s)",
    )
    simulate.add_argument(
        "--offer",
        action="append",
        default=[],
        metavar="NAME:PRICE:SPEED:KILLS",
        help="a machine: price per hour, speed as a multiple of --step-seconds' machine, kills per day; repeatable",
    )
    simulate.add_argument(
        "--price", type=at_least(0, float), default=0.0, help="per hour of the machine, where no --offer is given"
    )
    simulate.add_argument("--json", action="store_true", help="for programs")
    add_storage_options(simulate)
    simulate.set_defaults(act=_simulate)


def _simulate(given: argparse.Namespace) -> int:
    pace, steps, per_day = _pace(given)
    played = _played(given, pace, steps, per_day)
    if given.json:
        print(json.dumps([one.to_json() for one in played], indent=1))  # noqa: T201
        return errors.EXIT_OK
    columns = ("machine", "save every", "goodput", "takes", "attempts", "done again", "cost", "")
    terminal.console().print(terminal.Listing(columns, [one.cells() for one in played]))
    how = "the lives of the trace" if given.trace else f"{per_day:g} ends a day, {TRIALS} times"
    print(f"{steps} steps of {pace.step_s:.3g} s, {how}")  # noqa: T201
    return errors.EXIT_OK


@dataclass(frozen=True, slots=True)
class _Played:
    """The outcome of one machine with one interval."""

    machine: str
    price: float
    """Price per hour."""
    interval_steps: int
    outcome: "Outcome"
    best: bool = False

    @property
    def cost(self) -> float:
        return self.price * self.outcome.machine_s / 3600

    def to_json(self) -> dict[str, object]:
        return {
            "machine": self.machine,
            "interval_steps": self.interval_steps,
            "goodput": self.outcome.goodput,
            "wall_s": self.outcome.wall_s,
            "machine_s": self.outcome.machine_s,
            "cost": self.cost,
            "attempts": self.outcome.attempts,
            "redone_steps": self.outcome.redone_steps,
            "best": self.best,
        }

    def cells(self) -> tuple[str, ...]:
        from indextts_job.report.console import human_seconds

        return (
            self.machine,
            f"{self.interval_steps} steps",
            f"{self.outcome.goodput:.1%}",
            human_seconds(self.outcome.wall_s),
            f"{self.outcome.attempts:.1f}",
            f"{self.outcome.redone_steps:.0f}",
            f"{self.cost:.2f}" if self.price else "",
            "best" if self.best else "",
        )


def _played(given: argparse.Namespace, pace: "RunPace", steps: int, per_day: float) -> list[_Played]:
    """Every offered machine with every interval. The cheapest is marked; of equally cheap ones the fastest."""
    from indextts_job.simulation.world import Offer, average, parse_offer, scaled

    lives = _trace(given.trace) if given.trace else None
    offers = [parse_offer(text) for text in given.offer] or [Offer("", given.price, 1.0, per_day)]
    played = []
    for offer, interval in itertools.product(offers, sorted(given.intervals)):
        outcome = average(steps, interval, scaled(pace, offer.speed), offer.kills_per_day, given.noticed, TRIALS, lives)
        played.append(_Played(offer.name, offer.price, interval, outcome))
    # Without prices all costs are 0, and the fastest is the best.
    best = min(played, key=lambda one: (one.cost, one.outcome.wall_s))
    return [replace(one, best=one is best) for one in played]


def _pace(given: argparse.Namespace) -> "tuple[RunPace, int, float]":
    """Pace, steps and kills per day: from the arguments, else as measured in a run."""
    pace, steps, per_day = _measured(given)
    named = {name: getattr(given, f"{name}_seconds") for name in ("step", "stall", "save", "start", "requeue")}
    # What is given replaces what was measured, for questions like "what if saves took a minute".
    pace = replace(pace, **{f"{name}_s": seconds for name, seconds in named.items() if seconds is not None})
    steps = given.steps or steps
    if not steps or not pace.step_s:
        raise errors.ConfigError("give --steps and --step-seconds, or a run that has trained.")
    return pace, steps, per_day if given.kills_per_day is None else given.kills_per_day


def _measured(given: argparse.Namespace) -> "tuple[RunPace, int, float]":
    """Pace, steps and kills per day of the run that is given; zeros without one."""
    from indextts_job.simulation.world import RunPace

    if not given.run:
        return RunPace(step_s=0.0), 0, 0.0
    from indextts_job.report.attempts import attempts
    from indextts_job.simulation.measured import pace_of

    rows = attempts(open_run(given))
    # The pace comes from accounts of time, which are written before a save and at the end.
    if not any(row.spent for row in rows):
        raise errors.ConfigError(f"{given.run}: no attempt here has trained and saved yet; give --step-seconds.")
    return pace_of(rows)


def _trace(path: str) -> "list[Life]":
    """The machine lives in a file, one per line: seconds, and `noticed` if a notice came in time."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise errors.ConfigError(f"--trace {path}: {error.strerror}.") from error
    return [_life(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.split()]


def _life(line: str, where: str) -> "Life":
    from indextts_job.simulation.world import Life

    seconds, *rest = line.split()
    try:
        return Life(float(seconds), noticed=rest == ["noticed"])
    except ValueError as error:
        raise errors.ConfigError(f"{where}: {line!r}, expected seconds, and `noticed` or nothing.") from error
