"""Decides whether a selected checkpoint gives its exact position or only its weights, and tells the user."""

from dataclasses import dataclass, replace

from indextts_job.config import flatten
from indextts_job.errors import ConfigError
from indextts_job.redaction import redacted
from indextts_job.report.events import Emit, Notice
from indextts_job.resume.compatibility import Present, demand_same_run, extends_vocabulary
from indextts_job.resume.points import ResumePoint
from indextts_job.resume.select import Selection
from indextts_job.resume.shared_objects import other_base


@dataclass(frozen=True, slots=True)
class _Voice:
    """Emits notices about the resume."""

    emit: Emit
    step: int = 0

    def say(self, message: str) -> None:
        self.emit(Notice(step=self.step, topic="resume", message=message))

    def warn(self, message: str) -> None:
        self.emit(Notice(step=self.step, topic="resume", message=message, warning=True))


def decide(selection: Selection, present: Present, emit: Emit) -> Selection:
    """Decide between the exact position and weights only.

    Args:
        selection: The checkpoint to start from, if any.
        present: Settings and inputs of this attempt.
        emit: Gets the choice, and the changes since the checkpoint.

    Raises:
        ConfigError: A setting changed that decides the samples or the update of a step, or an adapter's base is
            another one.
        DataError: The dataset changed.
    """
    point = selection.point
    if point is None:
        _tell_of_no_checkpoint(selection, _Voice(emit))
        return selection
    # The position of these notices is this run's, not that of the checkpoint, which may be another run's.
    voice = _Voice(emit)
    _tell_of_checkpoint(selection, point, voice)
    recorded = point.manifest.values.tokenizer.pieces
    # Before the request for weights only: the check also refuses a tokenizer that does not fit the checkpoint at all.
    if extends_vocabulary(point.manifest.values, present.tokenizer):
        voice.warn(
            f"the tokenizer grew from {recorded} to {present.tokenizer.pieces} pieces: the checkpoint's weights are "
            "used, new rows are initialised; moments, schedule, scaler and position start afresh together"
        )
        return replace(selection, weights_only=True)
    if selection.weights_only:
        voice.warn("weights only: moments, schedule and position start afresh")
        if present.config.guard.keep:
            voice.warn("guard: rises are counted from these weights on, not from the base that they were trained from")
        return selection
    voice = _Voice(emit, point.name.step)
    _demand_same_base(point, present)
    for change in demand_same_run(point.manifest.values, present, point.name.step, point.url):
        voice.say(f"changed: {change}")
    voice.say(_position_text(point, present))
    return selection


def _demand_same_base(point: ResumePoint, present: Present) -> None:
    """Refuse another base beside an adapter: its factors mean something with their own base only.

    The run keeps its base and goes on with it, so a file that is named as before is not read.
    """
    values = point.manifest.values
    named = redacted(flatten(present.document)["inputs.base_checkpoint"])
    before = flatten(values.config).get("inputs.base_checkpoint")
    # A run that started from another run's weights has these as its base, whatever its configuration names.
    if values.adapter is None or values.lineage.run or named == before:
        return
    if hashes := other_base(point.manifest, present.config.inputs.base_checkpoint):
        raise ConfigError(
            f"inputs.base_checkpoint: {named} (content {hashes[1][:12]}) is not the base of {point.url} (content "
            f"{hashes[0][:12]}, from {before}). An adapter belongs to its base: give that one, or another run folder "
            "(--output-dir) for a new run."
        )


def _tell_of_no_checkpoint(selection: Selection, voice: _Voice) -> None:
    for note in selection.notes:
        voice.warn(note)
    if not selection.legacy:
        voice.say("no checkpoint: fresh start from the base checkpoint")


def _tell_of_checkpoint(selection: Selection, point: ResumePoint, voice: _Voice) -> None:
    for reason in point.passed_over:
        voice.warn(f"passed over a checkpoint: {reason}")
    for note in (*point.repaired, *selection.notes):
        voice.warn(note)
    # A listing finds lost objects. Their bytes are verified by the audit after the first save.
    if point.lost and not point.repaired:
        voice.warn(
            f"{len(point.lost)} objects of the checkpoint are lost or cut, {point.lost[0].key} among them. Training "
            "does not need them, an export does: restore them from a copy of the run."
        )
    voice.say(f"checkpoint found at {point.url}")


def _position_text(point: ResumePoint, present: Present) -> str:
    epoch, used = present.order.epoch_of(point.name.step)
    scaler = "loss scale, " if point.manifest.values.scaler else ""
    return (
        f"step {point.name.step} of {present.total_steps}, epoch {epoch}, {used} of {present.order.epoch_samples} "
        f"samples of it used; restored: weights, moments, {scaler}schedule, history; seed {present.order.seed}, "
        f"order {present.order.version}"
    )
