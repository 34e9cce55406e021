"""The command line: calls the function of a command, and turns exceptions into exit codes (I8).

Imports that take long come after the command is known and, for training, after the signal handlers are installed: a
SIGTERM without a handler ends the process with nothing committed.
"""

import errno
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from indextts_job import errors
from indextts_job.preemption.signals import StopSignals

if TYPE_CHECKING:
    from indextts_job.commands.parser import Parser
    from indextts_job.preemption.exit_guard import ExitGuard

# ruff: noqa: PLC0415  # imports inside functions: see above

STOPPABLE = ("train", "prepare")
"""Commands that work for hours, see stop signals, and end with 75 after one. `entry.py` has the same list."""


def run_process(early: Sequence[tuple[int, float]]) -> None:
    """Run the command line of this process, and end the process with its exit code.

    Args:
        early: Stop signals that were received before, with the instants of the monotonic clock.
    """
    from indextts_job.preemption.exit_guard import ExitGuard, end_process
    from indextts_job.report.quiet import QuietStream

    stop = StopSignals()
    guard = ExitGuard(stop)
    if sys.argv[1:2] and sys.argv[1] in STOPPABLE:
        # A closed terminal, or a disk that is full of the log, must not end a training: its output is dropped then.
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
        arguments: Arguments without the program's name; by default those of the process.
        stop: The stop requests of the process, with handlers installed; None = they are installed here, for commands
            that see them.
        guard: Ends the process when the main thread cannot; None = there is no such guard.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=logging.WARNING, format="warning     %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if stop is None:
        stop = StopSignals()
        if given[:1] and given[0] in STOPPABLE:
            stop.install()
    try:
        code = _dispatch(given, stop, guard)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return errors.EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # without this a bug ends with 1, which no launcher knows
        return _explain(error)
    return code


def _explain(error: Exception) -> int:
    """Print the error that ended a command; returns the exit code."""
    if isinstance(error, errors.IndexTTSJobError):
        from indextts_job.troubleshooting import entry_of

        kind = "stopped" if isinstance(error, errors.StoppedError) else "error"
        _tell(f"{kind}: {error}{entry_of(str(error))}")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        from indextts_job.terminal import silence

        # The program that reads our output has closed the pipe (`… | head`), which is no error.
        silence(sys.stdout)
        return errors.EXIT_OK
    if _is_failed_output(error):
        _tell(f"error: the output cannot be written: {error.strerror}. Nothing else is wrong.")
        return errors.EXIT_UNAVAILABLE
    traceback.print_exception(error)
    _tell(
        f"error: unexpected {type(error).__name__}: {error}\n"
        "This is a defect of indextts-job: please report it with the lines above. Committed checkpoints are "
        "intact; the same command goes on from the last one."
    )
    return errors.EXIT_SOFTWARE


def _is_failed_output(error: Exception) -> TypeGuard[OSError]:
    # Errors of files have a name. Those of our standard output have none.
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO)


def _tell(text: str) -> None:
    from indextts_job.redaction import redacted
    from indextts_job.terminal import lines

    # Every line but the first begins with a space, so that an id with a line break in it cannot forge a message.
    first, *further = redacted(lines(text)).split("\n")
    indented = [line if line[:1].isspace() else f"  {line}" for line in further]
    print("\n".join((first, *indented)), file=sys.stderr)  # noqa: T201


def _dispatch(arguments: Sequence[str], stop: StopSignals, guard: "ExitGuard | None") -> int:
    from indextts_job.legacy import flags

    parser = build_parser()
    given, rest = parser.parse_known_args(flags.normalise(arguments))
    # argparse accepts positional arguments in one place only, but settings may be anywhere among the flags.
    unknown = [argument for argument in rest if argument.startswith("-") or given.command not in STOPPABLE]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    given.parser = parser
    given.stop, given.guard = stop, guard
    if given.command in STOPPABLE:
        given.settings += rest
        given.raw = list(arguments)
    return int(given.act(given))


def build_parser() -> "Parser":
    """The argument parser with all commands."""
    from indextts_job.commands import (
        checkpoints,
        completion,
        demo,
        doctor,
        export,
        init,
        prepare,
        shard,
        simulate,
        speak,
        status,
        tokenizer,
        train,
    )
    from indextts_job.commands.examples import EXAMPLES, add_examples
    from indextts_job.commands.parser import Parser, ShowVersion

    parser = Parser(
        prog="indextts-job",
        description="Fine-tune IndexTTS's GPT (2.0 and 2.5) on machines that may vanish. Exit codes: 0 complete, "
        "75 stopped and committed (start again), 69 and 70 failed (retry), 65 data, 77 access, 78 configuration, "
        "79 a goal was missed (do not retry).",
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    every = (
        *(init, prepare, train, checkpoints, status, doctor, tokenizer, simulate, shard, export, speak, demo),
        completion,
    )
    for command in every:
        command.add(commands)
    add_examples(parser, EXAMPLES)
    return parser
