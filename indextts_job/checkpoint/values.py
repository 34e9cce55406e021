"""The values that a checkpoint records besides its tensors: frozen dataclasses, checked when a manifest is read. Pure.

docs/checkpoint-format.md describes the fields for readers of the files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from indextts_job.checkpoint.history import History
from indextts_job.errors import ConfigError, DataError
from indextts_job.parsing import AtLeastOne, Count, Document, different_key, parsed, plain
from indextts_job.preemption.deadline import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One source of a mixture."""

    name: str
    num_samples: AtLeastOne
    dataset_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRecord:
    """The weights of all sources from a step on."""

    step: Count
    weights: tuple[Count, ...]
    """In millionths; 0 = the source has no part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRecord:
    """The settings that decide which samples a step holds."""

    version: Count
    seed: Count
    global_batch_samples: AtLeastOne
    num_samples: AtLeastOne
    """Samples of the training set."""
    dataset_fingerprint: str
    sources: tuple[SourceRecord, ...] = ()
    """The sources of a mixture in their order; empty where all samples are one source."""
    weights: tuple[WeightsRecord, ...] = ()
    """Their weights, from step 0 on and from later steps on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRecord:
    """One manifest or sharded dataset of the training set, for people."""

    manifest: str
    samples: AtLeastOne
    languages: Mapping[str, int]
    """Samples by language."""
    hours: float
    """Duration of its codes."""
    fingerprint: str
    """SHA-256 over the ids and the content of its samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """The training set, for people."""

    manifests: tuple[str, ...]
    languages: Mapping[str, int]
    """Samples by language."""
    codes: Count
    """Semantic codes of all samples together."""
    skipped_samples: tuple[str, ...]
    """Ids of samples that were left out because they are bad."""
    files: tuple[ManifestRecord, ...] = ()
    """Each of `manifests`; empty in checkpoints of earlier releases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecord:
    """The tokenizer that the text ids were made with."""

    pieces: Count
    fingerprint: str
    """Hash of all pieces in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyRecord:
    """Rows of the text tables."""

    pieces: AtLeastOne
    base_pieces: Count
    """Rows that the base checkpoint brought; all others are new."""
    inserted_at: Count | None = None
    """Id of the first new row; None = behind all rows of the base."""

    @property
    def new_rows(self) -> int:
        """Rows that the base checkpoint did not have."""
        return self.pieces - self.base_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """The low-rank adapter that a run trains in place of its weights."""

    rank: AtLeastOne
    alpha: float
    targets: tuple[str, ...]
    last_blocks: Count
    language_rows: tuple[Count, ...] = ()
    """Rows of the language table that train, in the order of the stored rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParametersRecord:
    """Numbers of parameters."""

    trained: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The origin of a run and of an attempt."""

    run: str | None = None
    """The other run, or the old trainer's file, that it was started from."""
    checkpoint: str | None = None
    """The checkpoint that this attempt went on from."""
    step: Count | None = None
    """Step of that other run at which this one began."""

    @property
    def began_at(self) -> int:
        """Step at which the run began."""
        return self.step or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Hardware and software of an attempt. For people, and to report what has changed since."""

    hardware: Document
    """Fields of `hardware.plan.HardwareFacts`."""
    plan: Document
    """Fields of `hardware.plan.Plan`."""
    world_size: Count | None = None
    indextts_job: str = ""
    python: str = ""
    torch: str | None = None
    cuda: str | None = None
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLosses:
    """Losses of a few fixed samples when the checkpoint was saved; computed again after it is loaded."""

    samples: tuple[str, ...]
    """Their ids."""
    text_loss: float
    mel_loss: float
    precision: str
    device: str
    longest: AtLeastOne | None = None
    """So many text tokens and so many codes of each sample were used at most; None = all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointValues:
    """Everything that a checkpoint records besides its tensors."""

    config: Document
    """The run's configuration, as `RunConfig.to_json` gives it, without secrets."""
    model_config: Document
    """The model's config.yaml."""
    order: OrderRecord
    total_steps: AtLeastOne
    """Updates of the whole run."""
    dataset: DatasetRecord
    tokenizer: TokenizerRecord
    vocabulary: VocabularyRecord
    parameters: ParametersRecord
    lineage: Lineage
    environment: Environment
    history: History
    scaler: Document | None
    """`state_dict` of the float16 loss scaler; None in other precisions."""
    trained_languages: tuple[str, ...] = ()
    """Codes of the language rows that this run and those before it train; empty where the model has none."""
    adapter: AdapterRecord | None = None
    """None where all weights train."""
    model: str = ""
    """Version of the model; empty in a checkpoint of an earlier release."""
    learning_rate: float | None = None
    """Rate of the last update; None before the first one."""
    pace: Pace | None = None
    """Measured durations. The next attempt on this hardware uses them until it has measured its own."""
    reference: ReferenceLosses | None = None
    """None where the device had no memory to compute them."""

    epochs: float | None = None
    """Epochs of the first source that are done; None where all samples are one source."""

    @property
    def epoch(self) -> float:
        """Epochs done, counted in samples: 1.5 is the middle of the second; of a mixture, those of its first source."""
        return self.history.samples / self.order.num_samples if self.epochs is None else self.epochs

    def epoch_at(self, step: int) -> float:
        """The epochs done at an earlier step; of a mixture whose weights have changed, as if they had not."""
        if self.epochs is None:
            return step * self.order.global_batch_samples / self.order.num_samples
        return self.epochs * step * self.order.global_batch_samples / max(1, self.history.samples)

    def config_section(self, name: str) -> Document:
        """One section of the recorded configuration, `schedule` say; empty when it is not there."""
        section = self.config.get(name)
        return section if isinstance(section, Mapping) else {}

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a manifest holds them."""
        document: dict[str, Any] = plain(self)
        # A fresh run has no lineage; an empty mapping says so more clearly than three nulls.
        for name in ("lineage", "vocabulary"):
            document[name] = {key: value for key, value in document[name].items() if value is not None}
        for section, name in _LEFT_OUT:
            values = document[section] if section else document
            if values[name] in (None, "", [], ()):
                del values[name]
        return document


_LEFT_OUT = (
    ("", "trained_languages"),
    ("", "model"),
    ("", "adapter"),
    ("", "epochs"),
    ("history", "guard"),
    ("history", "speaking"),
    ("history", "sources"),
    ("dataset", "files"),
    ("order", "sources"),
    ("order", "weights"),
)
"""Values, by section, that a manifest does not hold when they are empty: those of a mixture in a run with one source,
say, so that it is the same document as in releases before mixtures."""

# Documents are stored as they are, so msgspec does not look into them; these parts are read without a check later.
_SECTIONS = {"config": ("recipe", "schedule", "data", "hardware"), "model_config": ("gpt",)}
"""Parts of the recorded documents that readers rely on."""
_CLOSED = ("history", "vocabulary", "pace")
"""Training resumes from these: an unknown key would be lost with the next save, a missing one would begin at 0."""
_OPTIONAL = (
    *("since_validation", "last_line", "overfitting_since", "train_total", "inserted_at"),
    *("guard", "speaking", "sources"),
)
"""Keys of these that earlier checkpoints may lack."""


def parse_values(document: object, where: str) -> CheckpointValues:
    """The values of a checkpoint.

    Args:
        where: The manifest, for the message.

    Raises:
        DataError: Naming the first value that is not what it should be.
    """
    try:
        values = parsed(document, CheckpointValues, "values")
    except ValueError as error:
        raise DataError(f"{where}: {error}; the manifest is damaged.") from error
    # msgspec leaves unknown keys out. For most sections that is right: a newer release may have recorded more.
    if problem := _missing_section(values) or _difference(document, values) or _impossible_order(values.order):
        raise DataError(f"{where}: {problem}; the manifest is damaged.")
    return values


def _missing_section(values: CheckpointValues) -> str | None:
    for name, sections in _SECTIONS.items():
        document = getattr(values, name)
        for section in sections:
            if not isinstance(document.get(section), Mapping):
                return f"values.{name}.{section} is missing, or holds no keys and values"
    return None


def _impossible_order(order: OrderRecord) -> str | None:
    """What is wrong with the record of a mixture, which a resume computes with."""
    steps = [one.step for one in order.weights]
    fitting = all(len(one.weights) == len(order.sources) and one.weights[0] for one in order.weights)
    if bool(order.sources) == bool(order.weights) and fitting and steps == sorted({0, *steps} if steps else ()):
        return None
    return "values.order.weights do not fit values.order.sources"


def _difference(document: object, values: CheckpointValues) -> str | None:
    assert isinstance(document, Mapping)  # noqa: S101  # it was parsed
    known = plain(values)
    problems = (different_key(document.get(name), known[name], _OPTIONAL, f"values.{name}") for name in _CLOSED)
    return next(filter(None, problems), None)


def demand_storable(values: object, where: str) -> None:
    """Refuse values that no checkpoint can record, before the first step.

    Args:
        values: What every checkpoint of a run will record.
        where: Name of their origin; begins the path of the value.

    Raises:
        ConfigError: Naming the value: an infinite number, a date, anything that JSON does not have.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is no text. Put it in quotes.")
            demand_storable(value, f"{where}.{key}")
    # Found now, with its path. At the first save it would end the training with an unspecific error.
    elif isinstance(values, (list, tuple)):
        for index, value in enumerate(values):
            demand_storable(value, f"{where}[{index}]")
    elif not _is_json_scalar(values):
        raise ConfigError(f"{where} is {values!r}, which no checkpoint can record. Give a finite number or a text.")


def _is_json_scalar(value: object) -> bool:
    # JSON has no infinity and no NaN.
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))
