"""`indextts-job checkpoints`: look at a run's checkpoints."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys

from indextts_job import errors
from indextts_job.commands.parser import Commands, Parser


def add(commands: Commands) -> None:
    """Add the command."""
    checkpoints = commands.add_parser("checkpoints", help="look at a run's checkpoints")
    actions = checkpoints.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    listing = actions.add_parser("list", help="all checkpoints of a run, newest first")
    listing.add_argument("run", help="run folder or URL")
    inspect = actions.add_parser("inspect", help="everything one checkpoint records")
    inspect.add_argument("checkpoint", help="a checkpoint's .json, or a run for its newest one")
    for sub in (listing, inspect):
        sub.add_argument("--json", action="store_true", help="for programs")
        sub.add_argument("--verify", action="store_true", help="read every byte and compare hashes")
    listing.set_defaults(act=lambda given: print_list(given.run, as_json=given.json, verify=given.verify))
    inspect.set_defaults(act=_inspect)


def print_list(run: str, *, as_json: bool, verify: bool) -> int:
    """All checkpoints of a run, newest first."""
    from indextts_job.checkpoint import describe
    from indextts_job.training import resume

    store, _ = resume.locate(run)
    rows = describe.rows(store, verify=verify)
    if as_json:
        print(json.dumps(rows, indent=1))  # noqa: T201
        return errors.EXIT_OK
    if not rows:
        print(f"{run}: no checkpoints")  # noqa: T201
        return errors.EXIT_OK
    from rich.console import Console
    from rich.table import Table

    from indextts_job.report.console import human_bytes

    table = Table("step", "epoch", "tags", "val total", "size", "created", "attempt", "verified", "name")
    for row in rows:
        validation = row.get("validation")
        table.add_row(
            str(row["step"]),
            f"{row['epoch']:.2f}" if "epoch" in row else "",
            ", ".join([*row["tags"], *(["superseded"] if row["superseded"] else [])]),
            f"{validation['total']:.4f}" if validation else "",
            human_bytes(row["bytes"]) if "bytes" in row else "",
            row.get("created", ""),
            str(row["attempt"]),
            {True: "yes", False: "NO", None: ""}[row["verified"]],
            row["name"],
        )
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(table)
    return errors.EXIT_OK


def _inspect(given: argparse.Namespace) -> int:
    import yaml

    from indextts_job.checkpoint import describe, retention
    from indextts_job.training import resume

    store, name = resume.locate(given.checkpoint)
    names = [name] if name else retention.current(store.names())
    if not names:
        raise errors.ConfigError(f"{given.checkpoint} holds no checkpoints.")
    manifest = store.manifest(names[0])
    document = dict(describe.details(manifest))
    if given.verify:
        store.verify(manifest)
        document["verified"] = True
    text = json.dumps(document, indent=1, ensure_ascii=False)
    print(text if given.json else yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True))  # noqa: T201
    return errors.EXIT_OK
