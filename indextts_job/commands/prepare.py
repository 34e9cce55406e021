"""`indextts-job prepare`: raw audio and transcripts to a dataset that trains."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

from indextts_job import errors
from indextts_job.commands.parser import Commands, at_least

if TYPE_CHECKING:
    from indextts_job.prepare.assembly import Assembled
    from indextts_job.prepare.config import PrepareConfig
    from indextts_job.report.console import ConsoleReport

WORKER_VARIABLES = ("INDEXTTS_WORKER", "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
"""Variables of the environment that name a worker: those of our launchers, of SLURM, of an Indexed Job."""


def add(commands: Commands) -> None:
    """Add the command."""
    prepare = commands.add_parser(
        "prepare",
        help="make a dataset of audio and transcripts, on any number of workers; the same command again goes on",
        description="Make codes, conditions and emotion vectors of audio, and a dataset of pairs. Any number of "
        "workers may run it at the same time on one output, and each may be killed at any instant.",
    )
    prepare.add_argument(
        "settings", nargs="+", metavar="PREPARE.yaml | key=value", help="configuration file, and dotted keys"
    )
    prepare.add_argument("--plan", action="store_true", help="say what would be done; loads no model, opens no audio")
    prepare.add_argument(
        "--assemble",
        action="store_true",
        help="only make the dataset of finished units: after a change of texts, tokenizer, split or pairs",
    )
    variables = ", ".join(WORKER_VARIABLES)
    name = f"name of this worker among those of one output (default: from {variables}, or the host's name)"
    prepare.add_argument("--worker", default="", help=name)
    prepare.add_argument(
        "--workers", type=at_least(1), default=1, metavar="N", help="for --plan: number of workers (default: 1)"
    )
    prepare.set_defaults(act=_prepare)


CUT_OFF = "the batch in work was not done in it. Finished units are committed; the same command goes on with the rest."


def _prepare(given: argparse.Namespace) -> int:
    # A batch may take longer than the guard leaves a command with nothing to end.
    with given.guard.working(CUT_OFF) if given.guard else contextlib.nullcontext():
        return _prepared(given)


def _prepared(given: argparse.Namespace) -> int:
    from indextts_job.prepare.run import assemble, prepare, read_work_list
    from indextts_job.report.console import ConsoleReport
    from indextts_job.report.events import Notice

    config = _config(given.settings)
    work = read_work_list(config)
    with ConsoleReport(sys.stdout) as console:
        if given.plan:
            from indextts_job.prepare.plan import plan_lines

            for line, warning in plan_lines(work.utterances, config, work.model, work.tokenizer, given.workers):
                console(Notice(step=0, topic="plan", message=line, warning=warning))
            return errors.EXIT_OK
        if given.assemble:
            assembled = assemble(config, work, given.stop)
        else:
            worker = worker_of(given.worker)
            console(Notice(step=0, topic="prepare", message=f"{len(work.utterances)} utterances, worker {worker}"))
            tell = _Progress(console)
            assembled = prepare(config, work, worker, given.stop, tell)
        _show(assembled, config, console)
    assembled.demand_enough(config.max_refused)
    return errors.EXIT_OK


def _config(settings: list[str]) -> "PrepareConfig":
    """The checked configuration; the storage is set up with it."""
    from indextts_job.commands.run_file import read_run_file
    from indextts_job.config import split_settings, storage_config
    from indextts_job.prepare.config import prepare_config
    from indextts_job.storage import files

    paths, overrides = split_settings(settings, os.path.exists)
    if len(paths) > 1:
        raise errors.ConfigError(f"{len(paths)} configuration files given ({', '.join(paths)}), expected one.")
    # The file itself may lie in a bucket that only the command line says how to reach.
    files.configure_object_stores(storage_config(dict(overrides)))
    where = paths[0] if paths else "command line"
    what = "configuration of the preparation"
    document = read_run_file(where, what=what).document if paths else None
    config = prepare_config(document, where, overrides)
    files.configure_object_stores(config.storage)
    return config


def worker_of(name: str) -> str:
    """The name of this worker.

    Args:
        name: As given; empty = from the environment, or the name of the host.
    """
    from indextts_job.prepare.claims import worker_name

    given = (os.environ.get(variable) for variable in WORKER_VARIABLES)
    return worker_name(name or next(filter(None, given), "") or socket.gethostname())


class _Progress:
    """Shows finished units: a bar on a terminal, a line for each elsewhere."""

    def __init__(self, console: "ConsoleReport") -> None:
        self._console = console
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        from indextts_job.report.events import Notice

        self._console.progress("units", done, total)
        if done != self._last and not sys.stdout.isatty():
            self._console(Notice(step=0, topic="units", message=f"{done} of {total} finished"))
        self._last = done


def _show(assembled: "Assembled", config: "PrepareConfig", console: "ConsoleReport") -> None:
    from indextts_job.prepare.assembly import REFUSED_FILE
    from indextts_job.redaction import redacted
    from indextts_job.report.events import Notice

    summary = assembled.summary
    for what, found in summary["warnings"].items():
        message = f"{what}: {found['count']} utterances, {', '.join(found['examples'])}"
        console(Notice(step=0, topic="audio, text", message=message, warning=True))
    if assembled.refused or summary["without_prompt"]:
        message = (
            f"{summary['refused']} utterances refused, {summary['without_prompt']} without a prompt: {REFUSED_FILE}"
        )
        console(Notice(step=0, topic="refused", message=message, warning=True))
    output = redacted(config.output).rstrip("/")
    message = (
        f"{summary['pairs']['train']} pairs to train on and {summary['pairs']['val']} to validate on, "
        f"{summary['hours']:.1f} h of {summary['speakers']} speakers; train with {output}/train.index.safetensors"
    )
    console(Notice(step=0, topic="dataset", message=message))
