"""`indextts-job checkpoints delete`: removes one checkpoint, or a whole run."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.storage_options import configure

if TYPE_CHECKING:
    from indextts_job.checkpoint.retention import CheckpointName
    from indextts_job.checkpoint.store import CheckpointStore
    from indextts_job.report.attempts import Attempt
    from indextts_job.storage.config import StorageConfig


def act(given: argparse.Namespace) -> int:
    """Remove what is named, after a question."""
    from indextts_job.report.attempts import attempts
    from indextts_job.resume.points import locate

    storage = configure(given, given.name)
    store, name = locate(given.name, storage)
    every = attempts(store.storage)
    _demand_idle(given.name, every)
    _demand_independent(store, storage)
    if name:
        return _delete_checkpoint(given, store, name)
    return _delete_run(given, store, every)


def _delete_checkpoint(given: argparse.Namespace, store: "CheckpointStore", name: "CheckpointName") -> int:
    from indextts_job.checkpoint import retention
    from indextts_job.checkpoint.removal import delete, size_of
    from indextts_job.report.console import human_bytes

    left = [other for other in retention.current(store.names()) if other != name]
    tags = f" ({', '.join(name.tags)})" if name.tags else ""
    what = f"the checkpoint of step {name.step}{tags}, {human_bytes(size_of(store, name))} that no other one needs"
    then = f"the run goes on from step {left[0].step}" if left else "the run has no other: it would begin anew"
    _ask(given, f"{what}; then {then}")
    delete(store, [name])
    terminal.say(f"deleted {given.name}")
    summarise(store)
    return errors.EXIT_OK


def summarise(store: "CheckpointStore") -> None:
    """Write summary.json again. What was asked for is done, so a failure is a warning."""
    from indextts_job.checkpoint.describe import SUMMARY, summarise_again

    try:
        summarise_again(store)
    except errors.IndexTTSJobError as error:
        terminal.say(f"warning: {SUMMARY} was not written again: {error}", sys.stderr)


def _delete_run(given: argparse.Namespace, store: "CheckpointStore", every: "list[Attempt]") -> int:
    from indextts_job.checkpoint.removal import delete_run, run_files
    from indextts_job.report.console import human_bytes

    names = store.names()
    if not names and not every:
        raise errors.ConfigError(f"{given.name} is no run: it holds no attempts and no checkpoints.")
    found = run_files(store)
    size = human_bytes(sum(found.values()))
    _ask(given, f"the whole run {given.name}: {len(names)} checkpoints, {len(found)} files, {size}")
    left = delete_run(store, found)
    terminal.say(f"deleted {given.name}" + (f"; left, not written by this program: {', '.join(left)}" if left else ""))
    return errors.EXIT_OK


def _ask(given: argparse.Namespace, what: str) -> None:
    """Ask whether to go on.

    Raises:
        ConfigError: The answer is no, or there is nobody to ask.
    """
    if given.yes:
        return
    if not sys.stdin.isatty():
        raise errors.ConfigError(f"this deletes {what}. Nothing is deleted without --yes where nobody can be asked.")
    if input(f"Delete {what}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise errors.ConfigError("nothing is deleted.")


def _demand_idle(run: str, every: "list[Attempt]") -> None:
    from indextts_job.report.liveness import is_running

    if every and not every[-1].ended and is_running(every[-1].record):
        raise errors.ConfigError(
            f"{run}: attempt {every[-1].number} is training (process {every[-1].record.pid}). Stop it first; it "
            "commits a checkpoint."
        )


def _demand_independent(store: "CheckpointStore", storage: "StorageConfig") -> None:
    """Refuse what another run is about to start from. A run that has a checkpoint of its own needs no other."""
    dependent = list(_dependents(store.storage.url, storage))
    if dependent:
        raise errors.ConfigError(
            f"{', '.join(dependent)} started from it and has no checkpoint of its own yet. Wait for its first one, or "
            "delete that run first."
        )


def _dependents(url: str, storage: "StorageConfig") -> Iterator[str]:
    """Runs beside this one that need it to start again."""
    from indextts_job.checkpoint.store import CheckpointStore
    from indextts_job.report.attempts import attempts
    from indextts_job.storage.remote_storage import open_storage
    from indextts_job.storage.urls import absolute

    own = absolute(url).rstrip("/")
    beside = own.rpartition("/")[0]
    for folder in open_storage(beside, storage).folders(""):
        run = open_storage(f"{beside}/{folder}", storage)
        if f"{beside}/{folder}" != own and not CheckpointStore(run).names() and _began_from(attempts(run), own):
            yield run.url


def _began_from(every: "list[Attempt]", run: str) -> bool:
    from indextts_job.storage.urls import absolute

    sources = [absolute(attempt.record.resume) for attempt in every if attempt.record.resume]
    return any(f"{source}/".startswith(f"{run}/") for source in sources)
