"""`indextts-job demo`: train, get preempted, resume, compare."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
from pathlib import Path

from indextts_job.commands.parser import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    demo = commands.add_parser("demo", help="train, get preempted, resume, and compare bit for bit")
    demo.add_argument("--folder", default="demo_run", help="where to work (default: demo_run)")
    demo.add_argument(
        "--url", default="", help="where the runs go, for example s3://bucket/demos (default: the folder)"
    )
    demo.add_argument("--model", choices=("2.0", "2.5"), default="2.0", help="version of the model (default: 2.0)")
    demo.set_defaults(act=_demo)


def _demo(given: argparse.Namespace) -> int:
    from indextts_job.demo.show import run_demo
    from indextts_job.model.versions import VERSIONS

    version = next(version for version in VERSIONS if version.name == given.model)
    return run_demo(Path(given.folder), given.url, version)
