"""The command line: arguments to calls, exceptions to exit codes (I8).

Heavy imports wait until the command is known and, for training, until the signal handlers are in place: a SIGTERM
that finds no handler ends the process with nothing committed.
"""

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

# ruff: noqa: PLC0415  # imports inside functions: see above


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    stop = StopSignals()
    logging.basicConfig(level=logging.WARNING, format="warning     %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        stop.install()
    try:
        return _dispatch(given, stop)
    except errors.StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except errors.IndexTTSJobError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`… | head`): nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_OK
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # the last resort: an exit code that launchers retry
        traceback.print_exc()
        print(  # noqa: T201
            f"error: unexpected {type(error).__name__}: {error}\n"
            "This is a defect of indextts-job: please report it with the lines above. Committed checkpoints are "
            "intact; the same command goes on from the last one.",
            file=sys.stderr,
        )
        return errors.EXIT_SOFTWARE


def _dispatch(arguments: Sequence[str], stop: StopSignals) -> int:
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
        given.raw = list(arguments)
    return int(given.act(given))


def build_parser() -> "Parser":
    """The command line's grammar."""
    from indextts_job.commands import checkpoints, demo, doctor, export, shard, simulate, status, tokenizer, train
    from indextts_job.commands.parser import Parser, ShowVersion

    parser = Parser(
        prog="indextts-job",
        description="Fine-tune IndexTTS2's GPT on machines that may vanish. Exit codes: 0 complete, 75 stopped and "
        "committed (start again), 69 and 70 failed (retry), 65 data, 77 access, 78 configuration (do not retry).",
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (train, checkpoints, status, doctor, tokenizer, simulate, shard, export, demo):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
