"""`indextts-job train`: trains, or resumes the run at its newest checkpoint."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from indextts_job import errors
from indextts_job.attempt import processes
from indextts_job.attempt.nodes import read_nodes, wanted_processes
from indextts_job.background import begin
from indextts_job.commands import checkpoints, doctor
from indextts_job.commands.parser import Commands, Parser
from indextts_job.legacy import flags
from indextts_job.preemption.exit_guard import ExitGuard
from indextts_job.preemption.signals import StopSignals

if TYPE_CHECKING:
    from indextts_job.commands.settings import Configured


def add(commands: Commands) -> None:
    """Add the command."""
    train = commands.add_parser(
        "train",
        help="train, or resume the run at its newest checkpoint",
        description="Train, or resume the run: the same command again continues an interrupted run.",
    )
    _add_arguments(train)
    train.set_defaults(act=_train)


def settings_in(arguments: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """What a command line says, for launchers: its files and `key=value` settings, and the keys that its flags set.

    Args:
        arguments: Arguments of `indextts-job train`.

    Raises:
        ConfigError: The command would refuse them.
    """
    parser = Parser(prog="indextts-job train")
    _add_arguments(parser)
    given, rest = parser.parse_known_args(flags.normalise(arguments))
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    # Without the environment: the job has another one.
    keys, _ = flags.overrides(given, {})
    return [*given.settings, *rest], keys | _own_flags(given)


def _add_arguments(train: Parser) -> None:
    train.add_argument(
        "settings",
        nargs="*",
        metavar="RUN.yaml | key=value",
        help="configuration file, and dotted keys that override it, for example schedule.max_steps=200",
    )
    train.add_argument("--grace-seconds", type=float, help="seconds from signal to kill (preemption.grace_seconds)")
    train.add_argument("--skip-bad-samples", action="store_true", help="leave bad samples out (data.skip_bad_samples)")
    train.add_argument("--list-checkpoints", action="store_true", help="list the run's checkpoints and exit")
    train.add_argument(
        "--help-config", action="store_true", help="print every key, explained, with its default, and exit"
    )
    train.add_argument("--schema", action="store_true", help="print a JSON Schema of run.yaml for editors, and exit")
    train.add_argument(
        "--dry-run", action="store_true", help="do everything up to the first step and change nothing (doctor run)"
    )
    flags.add_flags(train)


def _train(given: argparse.Namespace) -> int:
    started_at_s = time.monotonic()
    if given.help_config or given.schema:
        return _print_keys(as_schema=given.schema)
    keys, notes = flags.overrides(given, os.environ)
    keys |= _own_flags(given)
    from indextts_job.commands.settings import configuration, run_of

    # Before the configuration is checked: a listing needs the run only.
    if given.list_checkpoints:
        run, storage = run_of(given.settings, keys)
        return checkpoints.print_list(run, as_json=False, verify=False, storage=storage)
    configured = configuration(given.settings, keys)
    if given.dry_run:
        return doctor.examine(configured, as_json=False)
    guard = given.guard or ExitGuard(given.stop)
    processes.die_with_parent()
    count, nodes = wanted_processes(configured.config.hardware, os.environ), read_nodes(os.environ)
    # With RANK set this process is a rank itself, started below or by torchrun.
    if "RANK" not in os.environ and max(count, nodes.count) > 1:
        guard.dismiss()  # each rank has its own guard; this process waits for them and must outlive them
        command = [sys.executable, "-m", "indextts_job", *given.raw]
        return processes.ProcessesOfNode(command, count, lambda: given.stop() is not None, nodes).run()
    return _train_here(configured, notes, given.stop, guard, started_at_s)


def _own_flags(given: argparse.Namespace) -> dict[str, object]:
    """Values of this trainer's own flags, by key; those of the old trainer are in `legacy.flags`."""
    keys: dict[str, object] = {}
    if given.grace_seconds is not None:
        keys["preemption.grace_seconds"] = given.grace_seconds
    if given.skip_bad_samples:
        keys["data.skip_bad_samples"] = True
    return keys


def _train_here(
    configured: "Configured", notes: Sequence[str], stop: StopSignals, guard: ExitGuard, started_at_s: float
) -> int:
    """Train in this process, which may be one of several ranks."""
    from indextts_job.attempt.ahead import begin_downloads

    # Downloads start before torch is imported, which takes seconds itself.
    ahead = begin_downloads(configured.config, stop)
    if configured.config.preemption.spot_notices:
        # In a thread: the metadata service of a cloud is asked every few seconds.
        begin(lambda: _watch_notices(stop), "spot notices")
    # torch reads it when it is imported: fresh memory of tensors comes in pages of 2 MiB, a fifth of the time of 4 KiB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from indextts_job.attempt.run import run_attempt
    from indextts_job.report.console import ConsoleReport
    from indextts_job.report.events import Notice

    # The other ranks compute the same lines; printed, each would appear once per rank.
    prints = os.environ.get("RANK", "0") == "0"
    with ConsoleReport(sys.stdout if prints else io.StringIO()) as console:
        for topic, messages in (("flag", notes), ("settings", configured.notes)):
            for message in messages:
                console(Notice(step=0, topic=topic, message=message))
        return run_attempt(configured.config, stop, console, started_at_s, guard, ahead, written=configured.written)


def _watch_notices(stop: StopSignals) -> None:
    from indextts_job.preemption.clouds import known_clouds
    from indextts_job.preemption.notices import watch

    watch(known_clouds(os.environ), stop)


def _print_keys(*, as_schema: bool) -> int:
    from indextts_job.commands.config_help import documented_defaults
    from indextts_job.commands.config_schema import schema_text

    print(schema_text() if as_schema else documented_defaults(), end="")  # noqa: T201
    return errors.EXIT_OK
