"""`indextts-job doctor`: find out before the night what would end it."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from indextts_job.commands.parser import Commands, Parser

if TYPE_CHECKING:
    from indextts_job.doctor.findings import Finding

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


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
    from indextts_job.doctor.machine import examine

    return _report(examine(given.run), as_json=given.json)


def _report(findings: Iterable["Finding"], *, as_json: bool) -> int:
    from rich.console import Console
    from rich.text import Text

    from indextts_job.doctor.findings import exit_code

    console = Console(soft_wrap=True)
    seen = []
    for finding in findings:
        seen.append(finding)
        if as_json:
            continue
        console.print(
            Text.assemble((f"{finding.level:<8}", STYLES[finding.level]), f"{finding.subject:<20}", finding.found)
        )
        if finding.level != "ok" and finding.advice:
            console.print(Text(f"{'':<28}{finding.advice}"))
        sys.stdout.flush()
    if as_json:
        print(json.dumps([finding.to_json() for finding in seen], indent=1))  # noqa: T201
    return exit_code(seen)
