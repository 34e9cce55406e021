"""`indextts-launch`: start a training job where it should run, look at it, end it."""

import argparse
import sys
from collections.abc import Sequence

from indextts_job.errors import IndexTTSJobError
from launch.commands import kubernetes, local, slurm


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = build_parser().parse_args(arguments)
    try:
        return int(given.act(given))
    except IndexTTSJobError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="indextts-launch", description="Start a training job where it should run.")
    places = parser.add_subparsers(dest="place", required=True, metavar="PLACE")
    local.add(places)
    slurm.add(places)
    kubernetes.add(places)
    return parser


if __name__ == "__main__":
    sys.exit(main())
