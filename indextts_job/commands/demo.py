"""`indextts-job demo`: preempted and resumed; replay against forgetting; what no loss hears; from audio on."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
from pathlib import Path

from indextts_job.commands.parser import Commands
from indextts_job.errors import ConfigError


def add(commands: Commands) -> None:
    """Add the command."""
    demo = commands.add_parser(
        "demo",
        help="train, get preempted, resume, and compare bit for bit; or: forgetting, speaking, prepare",
        description="interruptions (default): two equal runs, one preempted and killed, end with the same bits. "
        "forgetting: a base that speaks English learns Amharic, alone and with English replayed, watched by a guard. "
        "speaking: three faults that no loss shows, heard by the free-running check. "
        "prepare: voices of espeak-ng become a dataset, in spite of two kills, and a model learns from it.",
    )
    kinds = ("interruptions", "forgetting", "speaking", "prepare")
    demo.add_argument("what", nargs="?", choices=kinds, default="interruptions")
    demo.add_argument("--folder", default="demo_run", help="where to work (default: demo_run)")
    demo.add_argument(
        "--url", default="", help="where the runs go, for example s3://bucket/demos (default: the folder)"
    )
    demo.add_argument("--model", choices=("2.0", "2.5"), default="2.0", help="version of the model (default: 2.0)")
    demo.set_defaults(act=_demo)


def _demo(given: argparse.Namespace) -> int:
    from indextts_job.demo.stage import ended_by_sigterm

    with ended_by_sigterm():
        return _run(given)


def _run(given: argparse.Namespace) -> int:
    from indextts_job.demo import forgetting, interruptions, preparation, speaking
    from indextts_job.model.versions import VERSIONS

    alone = {"forgetting": forgetting.run_demo, "speaking": speaking.run_demo}
    if given.what in alone:
        if given.url or given.model != "2.0":
            raise ConfigError(f"demo {given.what} has a folder only, no --url and no --model.")
        return alone[given.what](Path(given.folder))

    version = next(version for version in VERSIONS if version.name == given.model)
    if given.what == "prepare":
        if given.url:
            raise ConfigError("demo prepare has a folder only, no --url.")
        return preparation.run_demo(Path(given.folder), version)
    return interruptions.run_demo(Path(given.folder), given.url, version)
