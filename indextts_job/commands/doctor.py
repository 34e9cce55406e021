"""`indextts-job doctor`: find out before the night what would end it."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse

from indextts_job.commands.parser import Commands, Parser


def add(commands: Commands) -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", help="find out before the night what would end it")
    subjects = doctor.add_subparsers(dest="subject", required=True, metavar="SUBJECT", parser_class=Parser)
    gpu = subjects.add_parser(
        "gpu",
        help="this machine: GPU, driver, memory, CPUs, scratch space, and the bucket of a run",
        description="Look at this machine, and try the storage of a run. Exit code 0 if nothing is wrong, else that "
        "with which training would end.",
    )
    gpu.add_argument("run", nargs="?", default="", help="run folder or URL, whose storage is tried too")
    gpu.add_argument("--json", action="store_true", help="for programs")
    gpu.set_defaults(act=_gpu)


def _gpu(given: argparse.Namespace) -> int:
    from indextts_job.commands.findings import report
    from indextts_job.doctor.machine import examine

    return report(examine(given.run), as_json=given.json)
