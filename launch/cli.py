"""`indextts-launch`: submit a training job to this machine, SLURM or Kubernetes, inspect it and cancel it."""

import sys
import traceback
from collections.abc import Sequence

from indextts_job import errors, terminal
from indextts_job.commands.parser import Parser, ShowVersion
from indextts_job.redaction import redacted
from indextts_job.troubleshooting import entry_of

from .commands import kubernetes, local, slurm


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        given = build_parser().parse_args(arguments)
        code = int(given.act(given))
        # Flush here, where a closed pipe is handled below. At interpreter exit Python would report it with code 120.
        sys.stdout.flush()
    except errors.IndexTTSJobError as error:
        terminal.say(f"error: {terminal.lines(redacted(str(error)))}{entry_of(str(error))}", sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The program that reads our output has closed the pipe (`… | head`), which is no error.
        terminal.silence(sys.stdout)
        return errors.EXIT_OK
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it
    except Exception as error:  # noqa: BLE001
        # Everything that is not an IndexTTSJobError is a bug: show the traceback and use a documented exit code.
        traceback.print_exc()
        terminal.say(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "This is a defect of indextts-launch: please report it with the lines above.",
            sys.stderr,
        )
        return errors.EXIT_SOFTWARE
    return code


def build_parser() -> Parser:
    """The argument parser with the commands of all places."""
    parser = Parser(prog="indextts-launch", description="Start a training job where it should run.")
    parser.add_argument("--version", action=ShowVersion)
    places = parser.add_subparsers(dest="place", required=True, metavar="PLACE")
    local.add(places)
    slurm.add(places)
    kubernetes.add(places)
    return parser


if __name__ == "__main__":
    sys.exit(main())
