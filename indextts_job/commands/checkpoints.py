"""`indextts-job checkpoints`: look at a run's checkpoints, compare them, keep one."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys

from indextts_job import errors
from indextts_job.commands.parser import Commands, Parser


def add(commands: Commands) -> None:
    """Add the command."""
    checkpoints = commands.add_parser("checkpoints", help="look at a run's checkpoints, compare them, keep one")
    actions = checkpoints.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    listing = actions.add_parser("list", help="all checkpoints of a run, newest first")
    listing.add_argument("run", help="run folder or URL")
    inspect = actions.add_parser("inspect", help="everything one checkpoint records")
    inspect.add_argument("checkpoint", help="a checkpoint's .json, or a run for its newest one")
    for sub in (listing, inspect):
        sub.add_argument("--json", action="store_true", help="for programs")
        sub.add_argument("--verify", action="store_true", help="read every byte and compare hashes")
    compare = actions.add_parser(
        "compare",
        help="several checkpoints on the same validation samples",
        description="Evaluate checkpoints, best first. Writes nothing into any run.",
    )
    compare.add_argument("checkpoints", nargs="+", help="checkpoints' .json, or runs for all of their current ones")
    compare.add_argument("--validation", nargs="+", default=[], metavar="MANIFEST", help="default: the run's own")
    compare.add_argument("--max-samples", type=int, default=0, help="the first so many; 0 = all (default)")
    compare.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    compare.add_argument("--json", action="store_true", help="for programs")
    compare.set_defaults(act=_compare)
    keep = actions.add_parser("keep", help="tag a checkpoint, so that it is never removed by itself")
    keep.add_argument("checkpoint", help="a checkpoint's .json")
    keep.set_defaults(act=_keep)
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


def _compare(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from indextts_job.checkpoint import retention
    from indextts_job.checkpoint.manifest import file_name
    from indextts_job.hardware.facts import read_facts
    from indextts_job.report.console import ConsoleReport
    from indextts_job.training import resume
    from indextts_job.training.compare import compare

    chosen = []
    for source in given.checkpoints:
        store, name = resume.locate(source)
        names = [name] if name else retention.current(store.names())
        if not names:
            raise errors.ConfigError(f"{source} holds no checkpoints.")
        chosen += [(store, store.manifest(each)) for each in names]
    with ConsoleReport(sys.stderr) as console:
        found = [
            (store, compared)
            for (store, _), compared in zip(
                chosen,
                compare(
                    chosen,
                    given.validation,
                    given.max_samples,
                    read_facts(given.device),
                    lambda done, total: console.progress("validating", done, total),
                ),
                strict=True,
            )
        ]
    found.sort(key=lambda pair: pair[1].losses.total)
    if given.json:
        rows = [
            {"run": s.storage.url, "name": file_name(c.manifest.name), "samples": c.samples, **asdict(c.losses)}
            for s, c in found
        ]
        print(json.dumps(rows, indent=1))  # noqa: T201
        return errors.EXIT_OK
    table = Table("total", "text_loss", "mel_loss", "mel_top1", "step", "tags", "name")
    for _, compared in found:
        losses, name = compared.losses, compared.manifest.name
        numbers = [f"{losses.total:.4f}", f"{losses.text_loss:.4f}", f"{losses.mel_loss:.4f}", f"{losses.mel_top1:.1%}"]
        table.add_row(*numbers, str(name.step), ", ".join(name.tags), file_name(name))
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(table)
    print(f"{found[0][1].samples} samples each")  # noqa: T201
    return errors.EXIT_OK


def _keep(given: argparse.Namespace) -> int:
    from indextts_job.checkpoint.manifest import file_name
    from indextts_job.training import resume

    store, name = resume.locate(given.checkpoint)
    if name is None:
        raise errors.ConfigError(f"{given.checkpoint} is a run. Give the .json of one of its checkpoints.")
    print(f"kept as {file_name(store.keep(name))}")  # noqa: T201
    return errors.EXIT_OK
