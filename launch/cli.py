"""`indextts-launch`: start a training job and act on its exit code."""

import argparse
import sys
from collections.abc import Sequence

from launch.job import Job
from launch.local import LocalLauncher


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="indextts-launch", description="Start a training job where it should run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    local = commands.add_parser(
        "local",
        help="run here, restarting after preemptions and crashes",
        description="Run `indextts-job train` here. Exit code 75 starts it again at once, 69, 70 and kills after a "
        "growing pause and at most --max-failures times in a row; 0, 65, 77 and 78 end the job.",
    )
    local.add_argument("--max-failures", type=int, default=3, help="failures in a row that are tolerated (default: 3)")
    local.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of `indextts-job train`")
    given = parser.parse_args(arguments)
    passed = tuple(argument for argument in given.arguments if argument != "--")
    return LocalLauncher(Job(arguments=passed, max_failures=given.max_failures), _say).run()


def _say(message: str) -> None:
    print(f"launcher    {message}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
