"""`indextts-job simulate`: what a run on machines that vanish will take, before it is paid for."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands, at_least
from indextts_job.commands.storage_options import add_storage_options, open_run

if TYPE_CHECKING:
    from indextts_job.simulation.world import Life, RunPace

INTERVALS = (50, 100, 250, 500, 1000, 2000, 5000)
TRIALS = 20


def add(commands: Commands) -> None:
    """Add the command."""
    simulate = commands.add_parser(
        "simulate",
        help="predict goodput, hours and cost for intervals between saves, machines and prices",
        description="Play a run through on machines that vanish. Give the pace, or a RUN to take it from.",
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
        "--intervals", type=at_least(1), nargs="+", default=list(INTERVALS), help="steps between saves"
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
    from indextts_job.report.console import human_seconds
    from indextts_job.simulation.world import Offer, average, parse_offer, scaled

    pace, steps, per_day = _pace(given)
    lives = _trace(given.trace) if given.trace else None
    offers = [parse_offer(text) for text in given.offer] or [Offer("", given.price, 1.0, per_day)]
    rows = []
    for offer in offers:
        for interval in sorted(given.intervals):
            outcome = average(
                steps, interval, scaled(pace, offer.speed), offer.kills_per_day, given.noticed, TRIALS, lives
            )
            rows.append((offer, interval, outcome))
    best = min(rows, key=lambda row: (row[0].price * row[2].machine_s, row[2].wall_s))
    if given.json:
        print(  # noqa: T201
            json.dumps(
                [
                    {
                        **{"machine": o.name, "interval_steps": i, "goodput": r.goodput, "wall_s": r.wall_s},
                        **{"machine_s": r.machine_s, "cost": o.price * r.machine_s / 3600},
                        **{"attempts": r.attempts, "redone_steps": r.redone_steps, "best": (o, i, r) == best},
                    }
                    for o, i, r in rows
                ],
                indent=1,
            )
        )
        return errors.EXIT_OK
    shown = [
        (
            offer.name,
            f"{interval} steps",
            f"{outcome.goodput:.1%}",
            human_seconds(outcome.wall_s),
            f"{outcome.attempts:.1f}",
            f"{outcome.redone_steps:.0f}",
            f"{offer.price * outcome.machine_s / 3600:.2f}" if offer.price else "",
            "best" if (offer, interval, outcome) == best else "",
        )
        for offer, interval, outcome in rows
    ]
    columns = ("machine", "save every", "goodput", "takes", "attempts", "done again", "cost", "")
    terminal.console().print(terminal.Listing(columns, shown))
    how = "the lives of the trace" if lives else f"{per_day:g} ends a day, {TRIALS} times"
    print(f"{steps} steps of {pace.step_s:.3g} s, {how}")  # noqa: T201
    return errors.EXIT_OK


def _pace(given: argparse.Namespace) -> "tuple[RunPace, int, float]":
    """Pace, steps and kills per day: as given, else as a run has had them."""
    from indextts_job.simulation.measured import pace_of
    from indextts_job.simulation.world import RunPace

    pace, steps, per_day = RunPace(step_s=0.0), 0, 0.0
    if given.run:
        from indextts_job.report.attempts import attempts

        rows = attempts(open_run(given))
        if not any(row.spent for row in rows):
            raise errors.ConfigError(f"{given.run}: no attempt here has trained and saved yet; give --step-seconds.")
        pace, steps, per_day = pace_of(rows)
    from dataclasses import replace

    named = {
        f"{name}_s": getattr(given, f"{name}_seconds")
        for name in ("step", "stall", "save", "start", "requeue")
        if getattr(given, f"{name}_seconds") is not None
    }
    pace = replace(pace, **named)
    steps = given.steps or steps
    per_day = per_day if given.kills_per_day is None else given.kills_per_day
    if not steps or not pace.step_s:
        raise errors.ConfigError("give --steps and --step-seconds, or a run that has trained.")
    return pace, steps, per_day


def _trace(path: str) -> "list[Life]":
    from indextts_job.simulation.world import Life

    lives = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise errors.ConfigError(f"--trace {path}: {error.strerror}.") from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            lives.append(Life(float(words[0]), noticed=words[1:] == ["noticed"]))
        except ValueError as error:
            message = f"{path}:{number}: {line!r}, expected seconds, and `noticed` or nothing."
            raise errors.ConfigError(message) from error
    return lives
