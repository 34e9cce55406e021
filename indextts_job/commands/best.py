"""Which checkpoint of a run is the best one: for `checkpoints best` and `export`."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from indextts_job import errors, terminal
from indextts_job.checkpoint.retention import BEST
from indextts_job.commands.storage_options import configure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from indextts_job.checkpoint.manifest import CheckpointManifest
    from indextts_job.checkpoint.retention import CheckpointName
    from indextts_job.checkpoint.store import CheckpointStore
    from indextts_job.speaking.rule import SpeakingRule

Row = tuple[Any, ...]
"""A row of a table about validations; the step comes first."""
_NUMBERS = ("total", "target mel_loss", "agreement")
"""Columns that hold numbers, written out."""


def tagged(source: str, names: "Sequence[CheckpointName]", tag: str) -> "CheckpointName":
    """The newest checkpoint with a tag.

    Args:
        source: The run.
        names: Its checkpoints, newest first.
        tag: The tag.

    Raises:
        ConfigError: None has it.
    """
    if name := _with_tag(names, tag):
        return name
    raise errors.ConfigError(
        f"{source} holds no checkpoint tagged {tag}. `checkpoints list` shows what there is, export --last takes the "
        "newest."
    )


def best_else_newest(store: "CheckpointStore", names: "Sequence[CheckpointName]") -> "CheckpointName":
    """The best checkpoint; the newest one in a run that has not validated.

    Args:
        store: The run.
        names: Its checkpoints, newest first.
    """
    newest = store.manifest(names[0])
    best = newest.values.history.best
    return _with_tag(names, BEST) or (_best_left(newest, names, best.step) if best else names[0])


def _with_tag(names: "Sequence[CheckpointName]", tag: str) -> "CheckpointName | None":
    return next((name for name in names if tag in name.tags), None)


def _best_left(newest: "CheckpointManifest", names: "Sequence[CheckpointName]", gone: int) -> "CheckpointName":
    """The best of the checkpoints that are left, where the best one, of step `gone`, is not among them."""
    step = _best_step_of(newest, {name.step for name in names})
    instead = "the newest, none that is left was validated" if step is None else "the best of those that are left"
    terminal.say(
        f"the best validation was that of step {gone}, whose checkpoint is gone; taken instead: {instead}", sys.stderr
    )
    return next((name for name in names if name.step == step), names[0])


def _best_step_of(newest: "CheckpointManifest", steps: "Collection[int]") -> int | None:
    """Step of the best validation among some; None if none of them was validated."""
    from indextts_job.config import RunConfig
    from indextts_job.training.guard import best_of

    history, spoken = newest.values.history, _rule(newest, newest)
    config = RunConfig.from_json(newest.values.config, "the checkpoint").guard
    if history.guard and config.keep:
        return best_of([result for result in history.guard.results if result.step in steps], config, spoken)
    return spoken.best_of([one for one in history.validations if one.step in steps])


def tell_choice(manifest: "CheckpointManifest", newest: "CheckpointManifest") -> None:
    """Say on stderr which checkpoint it is, and whether the guard was violated there.

    Args:
        manifest: The checkpoint.
        newest: The newest one of its run, which has the settings that count: a bound may have been changed.
    """
    name, spoken = manifest.name, _rule(manifest, newest)
    tags = f" ({', '.join(name.tags)})" if name.tags else ""
    terminal.say(f"checkpoint of step {name.step}{tags}", sys.stderr)
    if text := _violation(manifest, newest):
        terminal.say(f"guard: violated. {text}", sys.stderr)
    if failures := spoken.failures(name.step):
        terminal.say(f"speaking: breaks limits. {'; '.join(failures)}", sys.stderr)


def _rule(manifest: "CheckpointManifest", newest: "CheckpointManifest") -> "SpeakingRule":
    """What speaking has to say of the steps that a checkpoint knows, by the settings of the newest one."""
    from indextts_job.config import RunConfig
    from indextts_job.speaking.rule import SpeakingRule

    config = RunConfig.from_json(newest.values.config, "the checkpoint")
    return SpeakingRule(manifest.values.history.speaking, config.speaking, config.guard.keep)


def _violation(manifest: "CheckpointManifest", newest: "CheckpointManifest") -> str:
    from indextts_job.config import RunConfig
    from indextts_job.training.guard import violation_at

    guard = manifest.values.history.guard
    if guard is None:
        return ""
    return violation_at(guard, manifest.name.step, RunConfig.from_json(newest.values.config, "the checkpoint").guard)


def act(given: argparse.Namespace) -> int:
    """Print the path of a run's best checkpoint, and why it is the best one."""
    from indextts_job.checkpoint.manifest import MANIFESTS, file_name
    from indextts_job.resume.points import locate_all

    store, names = locate_all(given.run, configure(given, given.run))
    best = tagged(given.run, names, BEST)
    path = f"{store.storage.url.rstrip('/')}/{MANIFESTS}/{file_name(best)}"
    newest = store.manifest(names[0])  # it knows all validations
    columns, rows = _table(newest, best) if given.explain or given.json else ((), [])
    spoken = _rule(newest, newest)
    if given.json:
        document = {
            "best": path,
            "validations": [
                {column: _value(column, cell) for column, cell in zip(columns, row, strict=True)} for row in rows
            ],
            "limits_broken": {step: failures for step, *_ in rows if (failures := spoken.failures(step))},
        }
        print(json.dumps(document, indent=1))  # noqa: T201
        return errors.EXIT_OK
    if rows:
        terminal.console().print(terminal.Listing(columns, rows, [spoken.failures(step) for step, *_ in rows]))
        for reason in _reasons(newest, best.step):
            terminal.say(reason)
    print(path)  # noqa: T201
    return errors.EXIT_OK


def _value(column: str, cell: Any) -> Any:  # noqa: ANN401  # of a row
    """A cell of the table for programs: a number is one, and the mark of the best one is true or false."""
    if column == "best":
        return bool(cell)
    return float(cell) if column in _NUMBERS and cell else cell


def _reasons(newest: "CheckpointManifest", best: int) -> "Iterator[str]":
    """Why other validations are not the best one, and what there is to know about the one that is.

    Args:
        newest: The newest checkpoint: its settings count.
        best: Step of the best one.
    """
    from indextts_job.config import RunConfig
    from indextts_job.training.guard import passed_over

    history, spoken = newest.values.history, _rule(newest, newest)
    config = RunConfig.from_json(newest.values.config, "the checkpoint").guard
    yield from passed_over(history, best, config, spoken)
    if spoken.heard_any and spoken.at(best) is None:
        yield f"step {best}, the best one, was never heard: speaking.mode was off at its validation"
    now = _best_step_of(newest, {one.step for one in history.validations})
    if now not in {best, None}:
        yield (
            f"by the present settings step {now} would be the best one. The best one is not chosen anew when settings "
            f"change: step {best} stays until a validation beats it"
        )


def _table(manifest: "CheckpointManifest", best: "CheckpointName") -> "tuple[Sequence[str], list[Row]]":
    """Headings and rows: what each validation has shown."""
    spoken = _rule(manifest, manifest)
    columns, rows = _losses(manifest, best)
    if not spoken.heard_any:
        return columns, rows
    with_speech = [(*row[:-1], *spoken.columns(row[0]), row[-1]) for row in rows]
    return (*columns[:-1], "speaking", "agreement", columns[-1]), with_speech


def _losses(manifest: "CheckpointManifest", best: "CheckpointName") -> "tuple[Sequence[str], list[Row]]":
    from indextts_job.config import RunConfig
    from indextts_job.training.guard import explained

    history = manifest.values.history
    if history.guard:
        config = RunConfig.from_json(manifest.values.config, "the checkpoint").guard
        explanation: list[Any] = explained(history.guard, best.step, config)
        return ("step", "target mel_loss", "largest rise", "inside", "best"), explanation
    rows: list[Row] = [
        (one.step, f"{one.losses.total:.4f}", "best" if one.step == best.step else "") for one in history.validations
    ]
    return ("step", "total", "best"), rows
