"""`indextts-job status`: shows the state of a run and its attempts."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands, at_least
from indextts_job.commands.storage_options import add_storage_options, demand_run, no_run, open_output
from indextts_job.waiting import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from indextts_job.report.attempts import Attempt
    from indextts_job.storage.run_storage import RunStorage

WATCH_S = 5.0
"""Default interval of `--watch`: a look lists and reads the run, which costs requests in a bucket."""


def add(commands: Commands) -> None:
    """Add the command."""
    status = commands.add_parser(
        "status", help="where a run or a preparation stands, and every attempt: where it ran, how it ended"
    )
    status.add_argument("run", help="run folder or URL, or the output of a preparation")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--html", metavar="FILE", help="write one page with curves and attempts, to look at anywhere")
    status.add_argument(
        "--watch",
        nargs="?",
        type=at_least(1, float),
        const=WATCH_S,
        metavar="SECONDS",
        help=f"look again and again (default: every {WATCH_S:g} s) until Ctrl+C",
    )
    add_storage_options(status)
    status.set_defaults(act=_status)


def _status(given: argparse.Namespace) -> int:
    from indextts_job.checkpoint.describe import SCHEMA
    from indextts_job.prepare.preparation import FILE
    from indextts_job.report.attempts import attempts
    from indextts_job.report.goodput import where_time_went
    from indextts_job.report.liveness import is_running
    from indextts_job.report.page import render
    from indextts_job.report.standing import standing

    storage = open_output(given)
    if FILE in storage.list(""):
        if given.html:
            raise errors.ConfigError("--html shows the attempts of a training; a preparation has none. Leave it out.")
        return _show_preparation(storage, as_json=given.json)
    demand_run(storage, given.run)
    # Curves of long runs are megabytes; only the page draws them.
    rows = attempts(storage, curves=bool(given.html))
    # Only checkpoints without attempt records, as in a partial copy: there is nothing to show here.
    if not rows:
        raise no_run(given.run)
    now, running = datetime.now(UTC), is_running(rows[-1].record)
    if given.html:
        return _write_page(given.html, render(given.run, rows, now, running=running))
    if given.json:
        shares = {part: round(seconds, 3) for part, seconds in where_time_went(rows).items()}
        stands = standing(rows, now, running=running).to_json()
        document = {
            "schema": SCHEMA,
            "standing": stands,
            "spent_seconds": shares,
            "attempts": [row.to_json() for row in rows],
        }
        print(json.dumps(document, indent=1))  # noqa: T201
        return errors.EXIT_OK
    console = terminal.console()
    if given.watch is not None:
        _watch(console, lambda: attempts(storage), rows, given.watch)
    console.print(_shown(rows))
    return errors.EXIT_OK


def _show_preparation(storage: "RunStorage", *, as_json: bool) -> int:
    """Units, refusals, pace and time left of a preparation."""
    from dataclasses import asdict

    from indextts_job.prepare.preparation import standing, standing_lines

    found = standing(storage)
    if as_json:
        print(json.dumps(asdict(found), indent=1))  # noqa: T201
    else:
        terminal.console().print(terminal.Facts(standing_lines(found)))
    return errors.EXIT_OK


def _write_page(path: str, page: str) -> int:
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise errors.ConfigError(f"--html {path}: {error.strerror}. Give another path.") from error
    terminal.say(path)
    return errors.EXIT_OK


def _watch(console: "Console", look: "Callable[[], list[Attempt]]", rows: "list[Attempt]", every_s: float) -> NoReturn:
    """Show the run repeatedly until Ctrl+C; without a terminal, print one report after another."""
    from rich.live import Live

    if not console.is_terminal:
        while True:
            console.print(_shown(rows))
            pause(every_s)
            rows = look()
    with Live(_shown(rows), console=console, screen=True, auto_refresh=False) as live:
        while True:
            pause(every_s)
            live.update(_shown(look()), refresh=True)


def _shown(rows: "list[Attempt]") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from indextts_job.report.attempts import scheduler_text
    from indextts_job.report.liveness import is_running
    from indextts_job.report.standing import how_it_ended, lost_steps, standing

    running = is_running(rows[-1].record)
    facts = terminal.Facts(standing(rows, datetime.now(UTC), running=running).lines())
    columns = ("attempt", "started (UTC)", "ended", "steps", "lost", "committed", "how")
    pairs = list(zip(rows, lost_steps(rows), strict=True))
    shown = [_cells(row, lost, how_it_ended(row, newest=row is rows[-1], running=running)) for row, lost in pairs]
    below = [
        (", ".join(filter(None, (row.record.node, row.record.device, scheduler_text(row.record)))),) for row in rows
    ]
    return Group(facts, Text(), terminal.Listing(columns, shown, below))


def _cells(row: "Attempt", lost: int, how: str) -> tuple[object, ...]:
    committed = "" if row.committed_step is None else row.committed_step
    times = (terminal.short_time(row.record.started), terminal.short_time(row.ended) if row.ended else "")
    return (row.number, *times, f"{row.from_step} … {row.last_step}", lost or "", committed, how)
