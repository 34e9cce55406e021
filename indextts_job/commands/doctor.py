"""`indextts-job doctor`: finds problems before a training does."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import itertools
import sys
from typing import TYPE_CHECKING

from indextts_job.commands.parser import Commands, Parser
from indextts_job.commands.storage_options import add_pair_options, add_storage_options, configure, open_run

if TYPE_CHECKING:
    from indextts_job.commands.settings import Configured


def add(commands: Commands) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor", help="find problems of machine, data, checkpoint or run before training does"
    )
    subjects = doctor.add_subparsers(dest="subject", required=True, metavar="SUBJECT", parser_class=Parser)
    gpu = subjects.add_parser(
        "gpu",
        help="this machine: GPU, driver, memory, CPUs, scratch space, and the bucket of a run",
        description="Examine this machine, and test the storage of a run. Exit code 0 if nothing is wrong, else that "
        "with which training would end.",
    )
    gpu.add_argument("run", nargs="?", default="", help="run folder or URL, whose storage is tested too")
    gpu.add_argument("--json", action="store_true", help="for programs")
    add_storage_options(gpu)
    gpu.set_defaults(act=_gpu)
    data = subjects.add_parser(
        "data",
        help="manifests and every array they name: samples that training would refuse, and suspicious ones",
        description="Examine a dataset. Exit code 65 if training would refuse it, 0 with warnings only.",
    )
    data.add_argument("manifests", nargs="+", metavar="MANIFEST[::LANG]", help="paired manifests to train on")
    data.add_argument("--validation", nargs="+", default=[], metavar="MANIFEST", help="paired manifests to validate on")
    data.add_argument("--tokenizer", required=True, help="tokenizer that training will use (.model or .tiktoken)")
    data.add_argument(
        "--config", default="checkpoints/config.yaml", help="config.yaml of the model (default: %(default)s)"
    )
    data.add_argument(
        "--repair",
        choices=("drop-tails", "add-prefix", "re-encode", "set-language"),
        help="also write a dataset to --output, without padded code tails, with the language's token in front of every "
        "text, with texts encoded again, or with another language; the input is not changed",
    )
    data.add_argument("--language", default="", help="of all records, for --repair: am, or az:tt for a borrowed slot")
    data.add_argument("--output", default="", help="new folder or URL for --repair, where the dataset lies")
    data.add_argument("--all", action="store_true", help="show every place, not the first few")
    data.add_argument("--json", action="store_true", help="for programs; always with every place")
    add_pair_options(data)
    add_storage_options(data, config_is_the_models=True)
    data.set_defaults(act=_data)
    checkpoint = subjects.add_parser(
        "checkpoint",
        help="a checkpoint, the old trainer's too: whole, finite, frozen rows, worth resuming, and how here",
        description="Examine a checkpoint. Exit code 65 if it is damaged.",
    )
    checkpoint.add_argument("checkpoint", help="a run for its newest one, a checkpoint's .json, or an old .pth")
    checkpoint.add_argument("--base-checkpoint", default="", help="gpt.pth that it was trained from, to compare rows")
    checkpoint.add_argument(
        "--config", default="checkpoints/config.yaml", help="config.yaml, for an old .pth (default: %(default)s)"
    )
    checkpoint.add_argument("--json", action="store_true", help="for programs")
    add_storage_options(checkpoint, config_is_the_models=True)
    checkpoint.set_defaults(act=_checkpoint)
    run = subjects.add_parser(
        "run",
        help="everything up to the first step, without training: machine, storage, inputs, data, resume, plan",
        description="Do what `train` would do until its first step, and change nothing. The exit code is the one that "
        "training would end with.",
    )
    run.add_argument("settings", nargs="+", metavar="RUN.yaml | key=value", help="as for train")
    run.add_argument("--json", action="store_true", help="for programs")
    run.set_defaults(act=_run)
    problem = subjects.add_parser(
        "report",
        help="write one file for a problem report: run, attempts, events, configuration, machine; no secrets",
        description="Collect the facts that help to find the cause of a problem. Read the file before you send it.",
    )
    problem.add_argument("run", help="run folder or URL")
    problem.add_argument("--output", default="indextts-report.json", help="(default: %(default)s)")
    add_storage_options(problem)
    problem.set_defaults(act=_problem)


def _gpu(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.doctor.machine import examine

    return report(examine(given.run, configure(given, given.run)), as_json=given.json)


def _data(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import DETAILS_SHOWN, report
    from indextts_job.data.manifest import DataConfig
    from indextts_job.doctor.data import examine_data
    from indextts_job.doctor.repair import Order, repair
    from indextts_job.doctor.survey import survey
    from indextts_job.errors import EXIT_OK, ConfigError
    from indextts_job.report.console import ConsoleReport
    from indextts_job.storage import files
    from indextts_job.tokenizer.limits import limits_of, model_of
    from indextts_job.tokenizer.loading import load_tokenizer

    # Before the survey, which reads every array.
    if bool(given.repair) != bool(given.output):
        raise ConfigError("--repair and --output belong together. Give both, or none.")
    if (given.language and not given.repair) or (given.repair == "set-language" and not given.language):
        raise ConfigError("--language is the language that --repair gives all records; set-language needs it.")
    configure(given)
    tokenizer = load_tokenizer(given.tokenizer)
    model = model_of(files.read_yaml(given.config, "model configuration", "--config"), given.config, tokenizer)
    with ConsoleReport(sys.stderr) as console:
        found = survey(
            given.manifests,
            given.validation,
            limits_of(model, tokenizer, DataConfig(emotion=given.emotion, self_pairs=given.self_pairs)),
            lambda done, total: console.progress("looking at arrays", done, total),
        )
    # A dataset with one systematic fault would print a line for each of its samples.
    shown = sys.maxsize if given.all else DETAILS_SHOWN
    manifests = [*given.manifests, *given.validation]
    # A generator: the repair runs after the findings have been shown, and only if it was asked for.
    order = Order(kind=given.repair, manifests=manifests, output=given.output, language=given.language)
    repaired = (repair(order, found, tokenizer) for _ in range(bool(given.repair)))
    code = report(itertools.chain(examine_data(found, tokenizer), repaired), as_json=given.json, details=shown)
    # What is wrong with the old dataset is what the new one was asked for.
    return EXIT_OK if given.repair else code


def _checkpoint(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.doctor.checkpoint import examine_checkpoint

    storage = configure(given, given.checkpoint)
    findings = examine_checkpoint(given.checkpoint, given.base_checkpoint, given.config, storage)
    return report(findings, as_json=given.json)


def _run(given: argparse.Namespace) -> int:
    from indextts_job.commands.settings import configuration

    # Composed as `train` does it, so that both see the same settings.
    return examine(configuration(given.settings, {}), as_json=given.json)


def examine(configured: "Configured", *, as_json: bool) -> int:
    """Do what `train` would do until its first step, and print what was found; returns the exit code."""
    from indextts_job.commands.findings import report
    from indextts_job.doctor.run import examine_run
    from indextts_job.report.console import ConsoleReport

    with ConsoleReport(sys.stderr) as console:
        return report(examine_run(configured.config, console, configured.written), as_json=as_json)


def _problem(given: argparse.Namespace) -> int:
    from pathlib import Path

    from indextts_job import errors
    from indextts_job.doctor.report import problem_report

    # Gathered before the file is opened: an error leaves no empty file.
    text = problem_report(open_run(given))
    try:
        Path(given.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise errors.ConfigError(f"--output {given.output}: {error.strerror}. Give another path.") from error
    print(f"{given.output}: {len(text)} characters; look through it before you send it")  # noqa: T201
    return errors.EXIT_OK
