"""`indextts-job checkpoints`: list, inspect and compare a run's checkpoints, name the best, keep one."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands, Parser, at_least
from indextts_job.commands.storage_options import add_storage_options, configure, no_run
from indextts_job.redaction import redacted_values
from indextts_job.storage.config import StorageConfig

if TYPE_CHECKING:
    from indextts_job.attempt.compare_checkpoints import Compared
    from indextts_job.checkpoint.describe import Row


def add(commands: Commands) -> None:
    """Add the command."""
    checkpoints = commands.add_parser(
        "checkpoints", help="look at a run's checkpoints, compare them, keep or delete one"
    )
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
    compare.add_argument("--max-samples", type=at_least(0), default=0, help="the first so many; 0 = all (default)")
    compare.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    compare.add_argument("--json", action="store_true", help="for programs")
    add_storage_options(compare)
    compare.set_defaults(act=_compare)
    best = actions.add_parser("best", help="the best checkpoint of a run")
    best.add_argument("run", help="run folder or URL")
    best.add_argument("--explain", action="store_true", help="the validations that decided")
    best.add_argument("--json", action="store_true", help="for programs, with the validations")
    add_storage_options(best)
    best.set_defaults(act=_best)
    keep = actions.add_parser("keep", help="tag a checkpoint, so that it is never removed by itself")
    keep.add_argument("checkpoint", help="a checkpoint's .json")
    delete = actions.add_parser(
        "delete",
        help="remove a checkpoint, or a whole run, after a question",
        description="Remove a checkpoint with what no other one needs, or a whole run. Refused while the run trains, "
        "and while a run beside it has started from it and has no checkpoint of its own yet.",
    )
    delete.add_argument("name", metavar="RUN | NAME.json", help="a checkpoint's .json, or a run")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.set_defaults(act=_delete)
    for sub in (listing, inspect, keep, delete):
        add_storage_options(sub)
    keep.set_defaults(act=_keep)
    listing.set_defaults(act=_list)
    inspect.set_defaults(act=_inspect)


def _list(given: argparse.Namespace) -> int:
    storage = configure(given, given.run)
    return print_list(given.run, as_json=given.json, verify=given.verify, storage=storage)


def print_list(run: str, *, as_json: bool, verify: bool, storage: StorageConfig | None = None) -> int:
    """Print all checkpoints of a run, newest first; a run that has just started may have none.

    Raises:
        ConfigError: There is no run.
    """
    from indextts_job.checkpoint import describe
    from indextts_job.checkpoint.fence import FOLDER
    from indextts_job.checkpoint.store import CheckpointStore
    from indextts_job.legacy.discovery import old_checkpoints
    from indextts_job.storage.remote_storage import open_storage

    store = CheckpointStore(open_storage(run, storage))
    rows = describe.rows(store, verify=verify)
    old = old_checkpoints(store.storage.list(""))
    # A run that has just started has attempts but no checkpoint; that is an empty list and no error.
    if not rows and not old and not store.storage.list(FOLDER):
        raise no_run(run)
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=1))  # noqa: T201
    else:
        _print_rows(rows, run, store.storage.url)
        _tell_of_old_ones(old)
    # Only a verification sets the exit code: a plain listing has to work for a run with a damaged checkpoint too.
    damaged = verify and any(row.verified is False for row in rows)
    return errors.EXIT_DATA if damaged else errors.EXIT_OK


def _print_rows(rows: "Sequence[Row]", run: str, url: str) -> None:
    from indextts_job.checkpoint.manifest import MANIFESTS, file_name

    if not rows:
        terminal.say(terminal.one_line(f"{run}: no checkpoints yet"))
        return
    columns = ("step", "epoch", "tags", "val total", "size", "created (UTC)", "attempt", "verified")
    below = [(file_name(row.name), row.problem) for row in rows]
    out = terminal.console()
    out.print(terminal.Listing(columns, [_cells(row) for row in rows], below))
    # The folder, because `inspect`, `keep` and `--resume` take a whole path.
    out.print(terminal.one_line(f"all of them in {url.rstrip('/')}/{MANIFESTS}/"), soft_wrap=True)


def _cells(row: "Row") -> tuple[object, ...]:
    from indextts_job.report.console import human_bytes

    tags = ", ".join([*row.name.tags, *(["superseded"] if row.superseded else [])])
    # Without --verify nothing is known about the bytes, so the column is empty.
    whole = {True: "yes", False: "NO", None: ""}[row.verified]
    manifest = row.manifest
    if manifest is None:
        return (row.name.step, "", tags, "", "", "", row.name.attempt, whole)
    return (
        row.name.step,
        f"{manifest.values.epoch:.2f}",
        tags,
        f"{row.validation.total:.4f}" if row.validation else "",
        human_bytes(manifest.size_bytes),
        terminal.short_time(manifest.created),
        row.name.attempt,
        whole,
    )


def _tell_of_old_ones(names: Sequence[str]) -> None:
    if names:
        terminal.say(terminal.one_line(f"of the old trainer, for --resume: {', '.join(names)}"))


def _inspect(given: argparse.Namespace) -> int:
    import yaml

    from indextts_job.checkpoint import describe
    from indextts_job.resume.points import locate_all

    store, names = locate_all(given.checkpoint, configure(given, given.checkpoint))
    # For a run the newest one: `locate_all` sorts them.
    manifest = store.manifest(names[0])
    document = describe.details(manifest)
    if given.verify:
        store.verify(manifest)
        document["verified"] = True
    plain = redacted_values(document)
    if given.json:
        print(json.dumps(plain, indent=1))  # noqa: T201
    else:
        print(terminal.lines(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)))  # noqa: T201
    return errors.EXIT_OK


def _compare(given: argparse.Namespace) -> int:
    from indextts_job.attempt.compare_checkpoints import compare
    from indextts_job.hardware.facts import read_facts
    from indextts_job.report.console import ConsoleReport
    from indextts_job.resume.points import locate_all

    storage = configure(given, given.checkpoints[0])
    located = [locate_all(source, storage) for source in given.checkpoints]
    chosen = [(store, store.manifest(name)) for store, names in located for name in names]
    # On stderr: stdout is the table or the JSON.
    with ConsoleReport(sys.stderr) as console:

        def progress(done: int, total: int) -> None:
            console.progress("validating", done, total)

        found = list(compare(chosen, given.validation, given.max_samples, read_facts(given.device), progress))
    # Best first: the question of this command is which checkpoint to use.
    found.sort(key=lambda compared: compared.losses.total)
    if given.json:
        print(json.dumps([compared.to_json() for compared in found], indent=1))  # noqa: T201
    else:
        _print_comparison(found)
    return errors.EXIT_OK


def _print_comparison(found: "Sequence[Compared]") -> None:
    shown, below = [], []
    for compared in found:
        losses, name = compared.losses, compared.manifest.name
        numbers = [f"{losses.total:.4f}", f"{losses.text_loss:.4f}", f"{losses.mel_loss:.4f}", f"{losses.mel_top1:.1%}"]
        shown.append((*numbers, name.step, ", ".join(name.tags)))
        below.append((compared.url,))
    columns = ("total", "text_loss", "mel_loss", "mel_top1", "step", "tags")
    terminal.console().print(terminal.Listing(columns, shown, below))
    print(f"{found[0].samples} samples each")  # noqa: T201


def _best(given: argparse.Namespace) -> int:
    from indextts_job.commands import best

    return best.act(given)


def _delete(given: argparse.Namespace) -> int:
    from indextts_job.commands import delete

    return delete.act(given)


def _keep(given: argparse.Namespace) -> int:
    from indextts_job.checkpoint.manifest import file_name
    from indextts_job.commands.delete import summarise
    from indextts_job.resume.points import locate

    store, name = locate(given.checkpoint, configure(given, given.checkpoint))
    if name is None:
        raise errors.ConfigError(f"{given.checkpoint} is a run. Give the .json of one of its checkpoints.")
    print(f"kept as {file_name(store.keep(name))}")  # noqa: T201
    summarise(store)
    return errors.EXIT_OK
