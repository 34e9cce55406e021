"""The command line: arguments to calls, exceptions to exit codes (I8).

Heavy imports wait until the command is known and, for training, until the signal handlers are in place: a SIGTERM
that finds no handler ends the process with nothing committed.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from indextts_job import errors
from indextts_job.preemption.signals import StopSignals

if TYPE_CHECKING:
    from indextts_job.commands.parser import Parser
    from indextts_job.preemption.exit_guard import ExitGuard

# ruff: noqa: PLC0415  # imports inside functions: see above


def run_process(early: Sequence[tuple[int, float]]) -> None:
    """Run the command line of this process, and end the process with its exit code.

    Args:
        early: Stop signals that came before this, with the instants of the monotonic clock.
    """
    from indextts_job.preemption.exit_guard import ExitGuard, end_process
    from indextts_job.report.quiet import QuietStream

    stop = StopSignals()
    guard = ExitGuard(stop)
    if sys.argv[1:2] == ["train"]:
        # A terminal that is closed, a disk that is full of its log: training goes on, and says nothing more.
        sys.stdout, sys.stderr = QuietStream(sys.stdout), QuietStream(sys.stderr)
        stop.install(early)
        guard.watch()
    try:
        code = main(stop=stop, guard=guard)
    except SystemExit as ended:  # argparse, after --help and --version
        code = ended.code if isinstance(ended.code, int) else errors.EXIT_OK
    end_process(code)


def main(
    arguments: Sequence[str] | None = None, stop: StopSignals | None = None, guard: "ExitGuard | None" = None
) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; the process's own by default.
        stop: The stop requests of the process, installed already; None = installed here for `train`.
        guard: Ends the process when a stop cannot be obeyed; None = nobody does.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=logging.WARNING, format="warning     %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if stop is None:
        stop = StopSignals()
        if given[:1] == ["train"]:
            stop.install()
    try:
        code = _dispatch(given, stop, guard)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return errors.EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last resort: an exit code that launchers retry
        return _explain(error)
    return code


def _explain(error: Exception) -> int:
    """Say what ended a command, and give its exit code."""
    if isinstance(error, errors.IndexTTSJobError):
        _tell(f"{'stopped' if isinstance(error, errors.StoppedError) else 'error'}: {error}")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone (`… | head`): nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_OK
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
        _tell(f"error: the output cannot be written: {error.strerror}. Nothing else is wrong.")
        return errors.EXIT_UNAVAILABLE
    traceback.print_exception(error)
    _tell(
        f"error: unexpected {type(error).__name__}: {error}\n"
        "This is a defect of indextts-job: please report it with the lines above. Committed checkpoints are "
        "intact; the same command goes on from the last one."
    )
    return errors.EXIT_SOFTWARE


def _tell(text: str) -> None:
    from indextts_job.redaction import redacted
    from indextts_job.terminal import lines

    # A line behind the first begins with a space: an id from a data set with a line break in it forges no message.
    first, *further = redacted(lines(text)).split("\n")
    indented = [line if line[:1].isspace() else f"  {line}" for line in further]
    print("\n".join((first, *indented)), file=sys.stderr)  # noqa: T201


def _dispatch(arguments: Sequence[str], stop: StopSignals, guard: "ExitGuard | None") -> int:
    from indextts_job.legacy import flags

    parser = build_parser()
    given, rest = parser.parse_known_args(flags.normalise(arguments))
    # argparse takes positional arguments in one place only; settings may stand anywhere among the flags.
    unknown = [argument for argument in rest if argument.startswith("-") or given.command != "train"]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if given.command == "train":
        given.settings += rest
        given.stop = stop
        given.guard = guard
        given.raw = list(arguments)
    return int(given.act(given))


def build_parser() -> "Parser":
    """The command line's grammar."""
    from indextts_job.commands import checkpoints, demo, doctor, export, shard, simulate, status, tokenizer, train
    from indextts_job.commands.parser import Parser, ShowVersion

    parser = Parser(
        prog="indextts-job",
        description="Fine-tune IndexTTS2's GPT on machines that may vanish. Exit codes: 0 complete, 75 stopped and "
        "committed (start again), 69 and 70 failed (retry), 65 data, 77 access, 78 configuration, "
        "79 a goal was missed (do not retry).",
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (train, checkpoints, status, doctor, tokenizer, simulate, shard, export, demo):
        command.add(commands)
    return parser
