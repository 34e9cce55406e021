"""The events of an attempt, as values. Readers turn them into lines, curves and files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from indextts_job.bounds import Bounds
from indextts_job.checkpoint.history import LanguageLoss, Losses, Speech
from indextts_job.parsing import Count

TRACKERS = ("wandb", "mlflow")
"""What `report.trackers` may name; each is also the name of its package and of our extra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Logs and curves: which are written, and how often."""

    log_interval_steps: Annotated[int, Bounds(1, 10**9)] = 100
    """Steps per train line and TensorBoard point; values are means over them."""
    run_name: str = "train"
    """Folder of the TensorBoard curve below RUN/logs."""
    sample_log: bool = False
    """Also write the sample ids of every step to RUN/samples, one line per step."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers besides TensorBoard: wandb, mlflow. Account, server and offline mode come from their own
    environment variables. All attempts of a run are one run there."""
    tracker_project: str = "indextts-job"
    """Project of Weights & Biases, experiment of MLflow."""
    command: tuple[str, ...] = ()
    """Program and arguments that are run when an attempt is complete, stopped or failed, and on a warning of guard,
    speaking check or overfitting, with a JSON object on standard input: event, run, step, attempt, total_steps,
    message, exit_code. Taken from a file of this machine or the command line only."""
    command_seconds: Annotated[float, Bounds(0, 3600)] = 20.0
    """Seconds after which it is ended."""
    prometheus_file: str = ""
    """Local file for the run's numbers, read by node_exporter's textfile collector; empty = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `step` is the position at that moment."""

    step: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(Event):
    """Training is about to start or to resume."""

    attempt: Count
    total_steps: Count
    resumed_from: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


MEMORY = "memory"
"""Topic of notices about the device's memory; a warning says that something is done again in smaller pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """A message for the user; `topic` is the heading of its line."""

    topic: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """An update was applied; `step` counts it."""

    samples: tuple[int, ...]
    """Dataset indices of all ranks, in the order in which each computed them."""
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLine(Event):
    """Means over the steps since the last line."""

    epoch: float
    losses: Losses
    learning_rate: float
    """Rate of the last update."""
    grad_norm: float
    samples_per_s: float
    tokens_per_s: float
    eta_s: float
    mfu: float | None = None
    """Model FLOPs utilisation: share of the hardware's peak; None when the peak is not known."""
    sources: Mapping[str, float] = field(default_factory=dict)
    """Code loss of each source of a mixture; empty where all samples are one source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationProgress(Event):
    """A validation is under way."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """A validation is done."""

    losses: Losses
    best: bool
    samples: int
    seconds: float
    languages: tuple[LanguageLoss, ...] = ()
    """Told apart where the guard keeps some of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoke(Event):
    """The model has spoken by itself, in a validation."""

    whole: Speech
    """Of all languages together."""
    languages: tuple[Speech, ...]
    broken: tuple[str, ...]
    """Limits that are broken, in words."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(Event):
    """`validation.command` has printed figures of a checkpoint; they come later than its step."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Event):
    """A checkpoint is visible and complete."""

    name: str
    tags: tuple[str, ...]
    bytes_written: int
    bytes_total: int
    seconds: float
    """Duration from the start of the save until the checkpoint was visible."""
    stall_seconds: float
    """Time that the training waited for it, everything included: the copy, and its end where something needed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpent(Event):
    """Sums of the attempt's time up to this step; emitted before each save and at the end."""

    steps_s: float
    """Steps that were applied."""
    data_s: float
    """Waiting for micro-batches."""
    validation_s: float
    saves_s: float
    """Waiting for saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopNoticed(Event):
    """A stop request was seen. Says what happened to the step in flight."""

    reason: str
    seconds_left: float | None
    """Time until the expected kill; None when none is expected."""
    micro_batches_done: int
    micro_batches: int
    decision: str
    """`finish`, `discard`, `between cycles`, `while its data was waited for`, or `validation postponed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(Event):
    """The attempt is over."""

    outcome: str
    """`complete`, `stopped` or `failed`."""
    exit_code: Count
    message: str = ""


# Events are values and not log lines: the console, the journal and the curves need different parts of them.
Emit = Callable[[Event], None]
