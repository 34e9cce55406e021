"""`indextts-job status`: where a run stands, and its attempts."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys
from datetime import UTC, datetime

from indextts_job import errors
from indextts_job.commands.parser import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    status = commands.add_parser(
        "status", help="where a run stands, and every attempt: where it ran, how far it came, how it ended"
    )
    status.add_argument("run", help="run folder or URL")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(act=_status)


def _status(given: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from indextts_job import files
    from indextts_job.checkpoint.remote import open_storage
    from indextts_job.report.attempts import attempts, scheduler_text
    from indextts_job.report.standing import standing
    from indextts_job.retry import StorageConfig

    files.configure_object_stores(StorageConfig())
    rows = attempts(open_storage(given.run))
    if given.json:
        print(json.dumps(rows, indent=1))  # noqa: T201
        return errors.EXIT_OK
    if not rows:
        raise errors.ConfigError(f"{given.run}: no run here; it holds no attempts.")
    for name, text in standing(rows, datetime.now(UTC)):
        print(f"{name:<12}{text}")  # noqa: T201
    table = Table("attempt", "started", "scheduler", "node", "device", "steps", "committed", "ended", "how")
    for row in rows:
        how = f"{row['outcome']} ({row['exit_code']})" if row["outcome"] else "runs, or was killed"
        table.add_row(
            str(row["attempt"]),
            row["started"],
            scheduler_text(row.get("scheduler", {})),
            row["node"],
            row["device"],
            f"{row['from_step']} … {row['last_step']}",
            "" if row["committed_step"] is None else str(row["committed_step"]),
            row["ended"].partition(".")[0],
            how if row["outcome"] or row is rows[-1] else "killed",
        )
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(table)
    return errors.EXIT_OK
