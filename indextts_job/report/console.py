"""Prints the run: one line per event, and on a terminal a progress bar below them."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from indextts_job import terminal
from indextts_job.checkpoint.history import LanguageLoss, Losses
from indextts_job.report.events import (
    AttemptEnded,
    AttemptStarted,
    Committed,
    Event,
    Notice,
    Spoke,
    StepDone,
    StopNoticed,
    TrainLine,
    Validated,
    ValidationProgress,
)
from indextts_job.report.speech import speech_text, verdict
from indextts_job.troubleshooting import entry_of

TOPIC_WIDTH = 11


class ConsoleReport:
    """Prints events. A context manager, so that the bar is removed at the end in every case."""

    def __init__(self, stream: TextIO) -> None:
        # No highlighting: it colours numbers inside of words. Soft wrap: a log line stays one line for grep.
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._recent = ""

    def __enter__(self) -> Self:
        # In a log file a bar would be thousands of lines.
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[recent]}"),
                TimeRemainingColumn(),
                console=self._console,
                # The bar vanishes at the end; the lines above stay.
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of a preparation; nothing without a terminal."""
        if self._bar:
            self._show(what, done, total)

    def __call__(self, event: Event) -> None:
        """Print one event."""
        self._update_bar(event)
        describe = _LINES.get(type(event))
        if describe:
            topic, message = describe(event)
            warning = isinstance(event, StopNoticed) or (isinstance(event, Notice) and event.warning)
            warning = warning or (isinstance(event, Spoke) and bool(event.broken))
            self._line(topic, message + entry_of(message) if warning else message, warning=warning)

    def _update_bar(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self._show("step", event.step, event.total_steps)
        if self._bar is None or self._task is None:
            return
        if isinstance(event, StepDone):
            self._bar.update(self._task, description="step", completed=event.step)
        elif isinstance(event, TrainLine):
            # Kept for `_show`, which sets all fields of the task again.
            self._recent = _recent(event)
            self._bar.update(self._task, recent=self._recent)
        elif isinstance(event, ValidationProgress):
            self._bar.update(self._task, description=f"val {event.done}/{event.total}")

    def _show(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task(what, recent="", total=total)
        self._bar.update(self._task, description=what, completed=done, total=total, recent=self._recent)

    def _line(self, topic: str, message: str, *, warning: bool = False) -> None:
        # Further lines are indented, so that a line break in an id or a path cannot forge a line of this program.
        text = terminal.lines(message.rstrip()).replace("\n", "\n" + " " * (TOPIC_WIDTH + 1))
        style = "yellow" if warning else "cyan"
        # As `Text`, which has no markup: brackets in a name must not be taken for styles.
        self._console.print(Text.assemble((f"{terminal.one_line(topic):<{TOPIC_WIDTH}}", style), " ", text))


def human_bytes(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """A duration for people: 1:02:03."""
    whole = int(seconds)
    # Whole hours without a bound: days would need a word, and runs take hundreds of hours.
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _losses(losses: Losses) -> str:
    return f"text_loss {losses.text_loss:.4f} | mel_loss {losses.mel_loss:.4f} | mel_top1 {100 * losses.mel_top1:.1f} %"


def _recent(event: TrainLine) -> str:
    """Losses and rate for the bar, short enough for 80 columns."""
    return f"text {event.losses.text_loss:.2f} mel {event.losses.mel_loss:.2f} {event.samples_per_s:.0f}/s"


def _train_line(event: TrainLine) -> str:
    mfu = f" | MFU {event.mfu:.1%}" if event.mfu is not None else ""
    sources = "".join(f" | {name} {loss:.4f}" for name, loss in event.sources.items())
    return (
        f"epoch {event.epoch:.2f} | step {event.step} | {_losses(event.losses)}{sources} | "
        f"lr {event.learning_rate:.3g} | {event.samples_per_s:.1f} samples/s | {event.tokens_per_s:.0f} tokens/s{mfu}"
        f" | left {human_seconds(event.eta_s)}"
    )


def _validation_line(event: Validated) -> str:
    best = ", best so far" if event.best else ""
    languages = "".join(f" | {_language(loss)}" for loss in event.languages)
    took = f"{event.samples} samples in {event.seconds:.1f} s"
    return f"step {event.step} | {_losses(event.losses)}{languages} | {took}{best}"


def _spoken_line(event: Spoke) -> str:
    languages = " | ".join(map(speech_text, event.languages))
    return f"step {event.step} | {languages} | {event.seconds:.1f} s, {verdict(event)}"


def _language(loss: LanguageLoss) -> str:
    rise = f" ({loss.rise:+.4f} ± {loss.rise_error:.4f})" if loss.rise is not None else ""
    return f"{loss.language or 'no language'} {loss.mel_loss:.4f}{rise}"


def _checkpoint_line(event: Committed) -> str:
    tags = f" [{', '.join(event.tags)}]" if event.tags else ""
    size = f"{human_bytes(event.bytes_written)} written of {human_bytes(event.bytes_total)}"
    duration = f"{event.seconds:.1f} s, training waited {event.stall_seconds:.2f} s"
    return f"step {event.step} committed{tags}: {event.name}, {size} in {duration}"


def _stop_line(event: StopNoticed) -> str:
    left = "no deadline" if event.seconds_left is None else f"{event.seconds_left:.1f} s left"
    place = f"after micro-batch {event.micro_batches_done} of {event.micro_batches} of step {event.step + 1}"
    where = {
        "finish": f"{place}: there is time, the cycle was finished",
        "discard": f"{place}: too little time, the cycle was discarded and will be done again from its first sample",
    }.get(event.decision, event.decision)
    return f"{event.reason} ({left}) {where}"


def _end_line(event: AttemptEnded) -> str:
    # Without the message of a failure: the command prints it on stderr, and here it would appear twice.
    return f"{event.outcome} at step {event.step}, exit code {event.exit_code}"


# Events without an entry are for other readers: single steps would be thousands of lines.
_LINES: dict[type[Event], Callable[[Any], tuple[str, str]]] = {
    Notice: lambda event: (event.topic, event.message),
    TrainLine: lambda event: ("train", _train_line(event)),
    Validated: lambda event: ("validation", _validation_line(event)),
    Spoke: lambda event: ("speaking", _spoken_line(event)),
    Committed: lambda event: ("checkpoint", _checkpoint_line(event)),
    StopNoticed: lambda event: ("stop", _stop_line(event)),
    AttemptEnded: lambda event: ("end", _end_line(event)),
}
"""Topic and text of each kind of event that gets a line."""
