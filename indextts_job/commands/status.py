"""`indextts-job status`: where a run stands, and its attempts."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts_job import errors
from indextts_job.commands.parser import Commands

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_S = 5.0


def add(commands: Commands) -> None:
    """Add the command."""
    status = commands.add_parser(
        "status", help="where a run stands, and every attempt: where it ran, how far it came, how it ended"
    )
    status.add_argument("run", help="run folder or URL")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--html", metavar="FILE", help="write one page with curves and attempts, to look at anywhere")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"look again and again (default: every {WATCH_S:g} s) until Ctrl+C",
    )
    status.set_defaults(act=_status)


def _status(given: argparse.Namespace) -> int:
    from rich.console import Console

    from indextts_job import files
    from indextts_job.checkpoint.remote import open_storage
    from indextts_job.report.attempts import attempts
    from indextts_job.report.goodput import where_time_went
    from indextts_job.report.page import render
    from indextts_job.report.standing import standing
    from indextts_job.retry import StorageConfig

    files.configure_object_stores(StorageConfig())
    storage = open_storage(given.run)
    rows = attempts(storage, curves=bool(given.html))
    if not rows and not given.json:
        raise errors.ConfigError(f"{given.run}: no run here; it holds no attempts.")
    if given.html:
        try:
            Path(given.html).write_text(render(given.run, rows, datetime.now(UTC)), encoding="utf-8")
        except OSError as error:
            raise errors.ConfigError(f"--html {given.html}: {error.strerror}. Give another path.") from error
        print(given.html)  # noqa: T201
        return errors.EXIT_OK
    if given.json:
        now = datetime.now(UTC)
        shares = {part: round(seconds, 3) for part, seconds in where_time_went(rows).items()}
        document = {"standing": dict(standing(rows, now)) if rows else {}, "spent_seconds": shares, "attempts": rows}
        print(json.dumps(document, indent=1))  # noqa: T201
        return errors.EXIT_OK
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)
    if given.watch is None:
        console.print(_shown(rows))
        return errors.EXIT_OK
    from rich.live import Live

    if not console.is_terminal:  # into a file, say: one report after another
        while True:
            console.print(_shown(rows))
            time.sleep(max(1.0, given.watch))
            rows = attempts(storage)
    with Live(_shown(rows), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(max(1.0, given.watch))
            live.update(_shown(attempts(storage)), refresh=True)


def _shown(rows: "list[dict[str, Any]]") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from indextts_job.report.attempts import scheduler_text
    from indextts_job.report.standing import lost_steps, standing

    facts = [Text(f"{name:<12}{text}") for name, text in standing(rows, datetime.now(UTC))]
    table = Table("attempt", "started", "scheduler", "node", "device", "steps", "lost", "committed", "ended", "how")
    for row, lost in zip(rows, lost_steps(rows), strict=True):
        how = f"{row['outcome']} ({row['exit_code']})" if row["outcome"] else "runs, or was killed"
        table.add_row(
            str(row["attempt"]),
            row["started"],
            scheduler_text(row.get("scheduler", {})),
            row["node"],
            row["device"],
            f"{row['from_step']} … {row['last_step']}",
            str(lost) if lost else "",
            "" if row["committed_step"] is None else str(row["committed_step"]),
            row["ended"].partition(".")[0],
            how if row["outcome"] or row is rows[-1] else "killed",
        )
    return Group(*facts, table)
