"""Compares a checkpoint with the present settings: may the run resume at its exact position, and what has changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indextts_job.checkpoint.values import CheckpointValues, OrderRecord
from indextts_job.config import RunConfig, flatten
from indextts_job.data.order import SampleOrder
from indextts_job.errors import ConfigError, findings_message
from indextts_job.model.versions import version_of_config
from indextts_job.redaction import redacted_values
from indextts_job.resume.same_order import demand_same_order
from indextts_job.tokenizer.limits import version_of
from indextts_job.tokenizer.loading import Tokenizer

POSITION_KEYS = ("recipe.global_batch_samples", "recipe.seed")
"""Keys that decide which samples a step holds. They are fixed for the whole run."""
MATHEMATICS = ("recipe.", "optimizer.", "schedule.", "adapter.")
"""Sections whose keys change the update of a step."""
WITHOUT_EFFECT = ("recipe.new_rows", "recipe.language_start", "adapter.start")
"""Keys of these sections that are used only at the start of a run."""
ADAPTER_SHAPE = ("adapter.rank", "adapter.targets", "adapter.last_blocks")
"""Keys that decide which tensors there are. They are fixed for the whole run."""
BEFORE_THEY_WERE_KEYS: Mapping[str, object] = {
    "schedule.new_rows_factor": 1.0,
    "data.datasets": [],
    "data.mixture_from_step": [],
}
"""Values for checkpoints written before the key existed. The default may differ from what they were trained with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """Settings and inputs of this attempt, for the comparison with a checkpoint."""

    config: RunConfig
    document: Mapping[str, Any]
    """The configuration as this attempt will record it, with secrets."""
    model_section: Mapping[str, Any]
    """`gpt` of the model's config.yaml."""
    tokenizer: Tokenizer
    order: SampleOrder
    order_record: OrderRecord
    """As this attempt will record it."""
    total_steps: int
    """Updates of the whole run."""


def extends_vocabulary(values: CheckpointValues, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is an extension of the one that a checkpoint was trained with.

    Raises:
        ConfigError: It is neither the same nor an extension.
    """
    recorded = values.tokenizer
    version = version_of_config(values.model_config)
    if version != version_of(tokenizer):
        raise ConfigError(
            f"inputs.tokenizer: a tokenizer of {version_of(tokenizer)}, but the checkpoint is of {version}. Give the "
            "files of the checkpoint's version; or another run folder (--output-dir) for a new run."
        )
    # The fingerprint of the first pieces: an extension only appends, so that old ids keep their meaning.
    if tokenizer.pieces >= recorded.pieces and tokenizer.fingerprint(recorded.pieces) == recorded.fingerprint:
        return tokenizer.pieces > recorded.pieces
    raise ConfigError(
        f"inputs.tokenizer: {tokenizer.pieces} pieces that do not begin with the {recorded.pieces} pieces the "
        "checkpoint was trained with. Use that tokenizer or an extension of it; or another run folder (--output-dir) "
        "for a new run."
    )


def demand_same_run(values: CheckpointValues, present: Present, step: int, where: str) -> list[str]:
    """Check that every step after the checkpoint has the samples and the update that it would have had.

    Args:
        values: The values that the checkpoint records.
        present: Settings and inputs of this attempt.
        step: The checkpoint's step.
        where: The checkpoint, for messages.

    Returns:
        Differences without effect on the update, as `key: old -> new`.

    Raises:
        ConfigError: A setting changed that decides the samples or the update of a step.
        DataError: The dataset changed.
    """
    new_run = f"To train on from its weights in a new run: --resume {where} --no-load-optimizer --output-dir NEW."
    _demand_same_model(values, present, where)
    # Model and position first: a wrong file explains more than the list of all differences.
    changes = _changes(values, present)
    _demand_same_position(changes, present, new_run)
    _demand_same_adapter(changes, where, new_run)
    demand_same_order(values, present.order_record, step, where, new_run)
    _demand_same_mathematics(changes, values, present, where)
    # `resume.*` differs in most resumes and says nothing about the training.
    said = [f"{change.key}: {change.old} -> {change.new}" for change in changes if not change.key.startswith("resume.")]
    # Other weights of the main source are another length of its epochs, which the schedule follows.
    if present.order_record.sources and present.total_steps != values.total_steps:
        said.append(f"steps of the run: {values.total_steps} -> {present.total_steps}")
    return said


@dataclass(frozen=True, slots=True)
class _Change:
    """A setting that is not what the checkpoint records."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {self.old} in the checkpoint, {self.new} now"


def _changes(values: CheckpointValues, present: Present) -> list[_Change]:
    # What a checkpoint does not record was not a key yet: every run had what is the default now.
    old = {**flatten(RunConfig().to_json()), **BEFORE_THEY_WERE_KEYS, **flatten(values.config)}
    # The checkpoint's configuration is recorded without secrets, so they must not count as changes.
    new = redacted_values(flatten(present.document))
    return [_Change(key, old.get(key), new[key]) for key in new if old.get(key) != new[key]]


def _demand_same_mathematics(
    changes: Sequence[_Change], values: CheckpointValues, present: Present, where: str
) -> None:
    decisive = [change for change in changes if _is_decisive(change.key, values)]
    refused = [str(change) for change in decisive if change.key not in present.config.resume.accept]
    if refused:
        # All of them, also those accepted before: the line replaces the setting as a whole.
        accept = f"resume.accept=[{','.join(change.key for change in decisive)}]"
        advice = f"They change the update of every step. If that is intended, say so: {accept}"
        raise ConfigError(findings_message(f"settings differ from those of {where}", refused, advice))


def _is_decisive(key: str, values: CheckpointValues) -> bool:
    """Whether a change of the key changes the update of a step in this run."""
    if key.startswith("adapter.") and values.adapter is None:
        return False
    # The rate of new rows has no effect where there are none.
    without_effect = key in WITHOUT_EFFECT or (key == "schedule.new_rows_factor" and not values.vocabulary.new_rows)
    return key.startswith(MATHEMATICS) and not without_effect


def _demand_same_model(values: CheckpointValues, present: Present, where: str) -> None:
    before, after = flatten(values.model_config["gpt"]), flatten(present.model_section)
    changed = [
        f"gpt.{key} {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changed:
        raise ConfigError(f"inputs.model_config does not describe the model of {where}: {', '.join(changed)}.")


def _demand_same_position(changes: Sequence[_Change], present: Present, new_run: str) -> None:
    fixed = [str(change) for change in changes if change.key in POSITION_KEYS]
    if fixed:
        advice = f"They decide which samples a step holds, so a run keeps them. {new_run}"
        raise ConfigError(findings_message(f"settings that belong to the run {present.config.run}", fixed, advice))


def _demand_same_adapter(changes: Sequence[_Change], where: str, new_run: str) -> None:
    shape = [str(change) for change in changes if change.key in ADAPTER_SHAPE]
    if shape:
        advice = f"They decide which tensors train, so a run keeps them. {new_run}"
        raise ConfigError(findings_message(f"the adapter is not that of {where}", shape, advice))
