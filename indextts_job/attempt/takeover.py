"""Resumes from a checkpoint of the old trainer, or refuses it, and tells the user what is taken over."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from indextts_job.attempt.inputs import Inputs
from indextts_job.checkpoint.history import History
from indextts_job.checkpoint.tensor_names import FIRST_MOMENT, SECOND_MOMENT
from indextts_job.errors import MAX_FINDINGS_SHOWN, ConfigError, DataError, findings_message
from indextts_job.legacy.adoption import Imported, adopt
from indextts_job.legacy.checkpoint import LegacyCheckpoint, read_legacy_checkpoint
from indextts_job.model.base_checkpoint import BaseCheckpoint, carried_tensors
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.select import Selection
from indextts_job.training.state import Carried, TrainState

MOVED_BASE_ROWS = "moved_base_rows"
"""Key in `resume.accept`: resume from an old checkpoint although its base rows differ from the base's."""


def take_over(
    accept: Collection[str], inputs: Inputs, selection: Selection, base: BaseCheckpoint, emit: Emit
) -> tuple[BaseCheckpoint, Imported | None, str]:
    """An old checkpoint: its state if the vocabulary is the same, its weights as a base if it has grown.

    Args:
        accept: `resume.accept` of the configuration.
        inputs: Model, tokenizer and length of the run.
        selection: Names the old checkpoints, the preferred one first.
        base: The base checkpoint that the old run started from.
        emit: Gets a line for everything that is, and is not, taken over.

    Returns:
        The base to build on, the state unless the vocabulary grew, and the file that they are from.

    Raises:
        ConfigError: It does not fit, or a fresh start would be better.
        DataError: None of them can be read.
    """

    def say(message: str, *, warning: bool = False) -> None:
        emit(Notice(step=0, topic="import", message=message, warning=warning))

    source, old = _first_readable(selection.legacy, inputs, lambda reason: say(reason, warning=True))
    pieces = inputs.tokenizer.pieces
    if old.text_pieces > pieces:
        raise ConfigError(
            f"{source} has {old.text_pieces} pieces, the tokenizer {pieces}. Use the tokenizer it was "
            "trained with, or an extension of it."
        )
    if old.text_pieces < pieces:
        new = pieces - old.text_pieces
        say(f"weights of {source}; {new} new rows start afresh, and with them all moments")
        # Moments, schedule and position belong together; new rows have no moments, so all start afresh.
        return BaseCheckpoint(old.tensors, old.text_pieces), None, source
    imported = adopt(old, base, Vocabulary(pieces=pieces, base_pieces=base.text_pieces), inputs.model)
    if imported.trained_rows and MOVED_BASE_ROWS not in accept:
        raise ConfigError(_trained_rows_text(source, imported.trained_rows))
    if selection.weights_only:
        # Moments belong to the position, so both go together.
        imported = replace(imported, moments=None, step=0)
    _demand_steps_left(source, imported.step, inputs.total_steps)
    for note in imported.notes:
        say(note)
    taken = "weights and moments" if imported.moments is not None else "weights"
    say(f"{taken} of {source}; going on at step {imported.step} of {inputs.total_steps}")
    return imported.base, imported, source


def _demand_steps_left(source: str, step: int, total_steps: int) -> None:
    if step >= total_steps:
        raise ConfigError(
            f"{source} is at step {step}, this run ends at step {total_steps}. Raise "
            "schedule.epochs or schedule.max_steps, or take its weights only (--no-load-optimizer)."
        )


def _first_readable(sources: Sequence[str], inputs: Inputs, say: Callable[[str], None]) -> tuple[str, LegacyCheckpoint]:
    """The first old checkpoint that is whole. The old trainer wrote in place, so a kill may have cut the newest."""
    failures = []
    for source in sources:
        try:
            old = read_legacy_checkpoint(source, inputs.model)
        except DataError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            say(f"passed over a checkpoint: {failure}")
        return source, old
    if len(failures) == 1:  # its own message says more than a list of one
        raise DataError(failures[0])
    advice = "Nothing was changed. Restore one of the files, or start afresh with --resume none."
    raise DataError(findings_message("no checkpoint of the old trainer can be read", failures, advice))


def _trained_rows_text(source: str, rows: Sequence[str]) -> str:
    shown = "; ".join(rows[:MAX_FINDINGS_SHOWN]) + (" …" if len(rows) > MAX_FINDINGS_SHOWN else "")
    return (
        f"{source}: {len(rows)} base rows hold trained values ({shown}): it was trained without freezing them, and the "
        "base languages have suffered. A fresh start is better: --resume none, or leave --resume out, with another "
        f"--output-dir. To go on with the trained rows all the same: resume.accept=[{MOVED_BASE_ROWS}]."
    )


def install(state: TrainState, imported: Imported, global_batch_samples: int) -> None:
    """Put the state of an old checkpoint into a fresh one."""
    frozen = {name: imported.base.tensors[name] for name, _ in state.model.named_buffers()}
    state.model.load_state_dict({**imported.weights, **frozen}, strict=True)
    if imported.moments is not None:
        tensors = {FIRST_MOMENT + name: pair[0] for name, pair in imported.moments.items()}
        tensors |= {SECOND_MOMENT + name: pair[1] for name, pair in imported.moments.items()}
        state.load_moments(tensors, imported.step)
    state.step = imported.step
    # The old trainer recorded no history; the epoch is computed from the samples, so these are filled in.
    state.history = History(samples=imported.step * global_batch_samples)
    state.carried = Carried(tensors=carried_tensors(state.model, imported.base))
