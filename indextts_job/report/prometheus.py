"""Writes the numbers of a run for Prometheus, as the text file that node_exporter's textfile collector reads.

Every event that changes a number replaces the whole file, so a reader never sees half of it.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import GaugeMetricFamily

from indextts_job.checkpoint.history import Losses
from indextts_job.errors import ConfigError
from indextts_job.report.events import (
    AttemptEnded,
    AttemptStarted,
    Committed,
    Event,
    Spoke,
    TimeSpent,
    TrainLine,
    Validated,
)
from indextts_job.report.speech import by_language, speech_values

logger = logging.getLogger(__name__)

PREFIX = "indextts_job"
HELP = {
    "step": "Optimizer steps that are done.",
    "total_steps": "Optimizer steps of the whole run.",
    "attempt": "Number of the attempt.",
    "running": "1 while the attempt trains, 0 after its end.",
    "exit_code": "Exit code of the attempt, after its end.",
    "updated_timestamp_seconds": "When this file was written.",
    "epoch": "Passes over the training set.",
    "loss": "Mean losses; kind is text, mel or total, set is train or validation.",
    "language_loss": "Mean losses of the validation by language; kind is text or mel.",
    "language_rise": "Rise of a kept language's mel loss above that of the base.",
    "mel_top1": "Share of codes whose arg-max is right; set is train or validation.",
    "learning_rate": "Learning rate of the last update.",
    "grad_norm": "Mean norm of the gradient before clipping.",
    "samples_per_second": "Training rate in samples.",
    "tokens_per_second": "Training rate in packed tokens.",
    "mfu": "Model FLOPs utilisation, where the card's peak is known.",
    "eta_seconds": "Time until the run is complete, at this rate.",
    "speaking": "Figures of the codes that the model speaks by itself, by language; language all is all of them.",
    "speaking_limits_broken": "Limits of these that the last checkpoint breaks.",
    "checkpoint_step": "Step of the last committed checkpoint.",
    "checkpoint_timestamp_seconds": "When it was committed.",
    "save_seconds": "How long its save took.",
    "save_stall_seconds": "How long training waited for it.",
    "spent_seconds": "Time of the attempt by part: steps, data, validation, saves.",
}
LABELS = {
    "loss": ("kind", "set"),
    "language_loss": ("language", "kind"),
    "language_rise": ("language",),
    "mel_top1": ("set",),
    "speaking": ("language", "figure"),
    "spent_seconds": ("part",),
}
"""Labels in addition to `run`."""


class PrometheusFile:
    """Writes the file after every event that has numbers."""

    def __init__(self, path: Path, run: str) -> None:
        """No file is written before the first event.

        Args:
            run: Value of the label `run`.

        Raises:
            ConfigError: Its folder does not exist.
        """
        # At the start: a mistyped folder would otherwise show up as a dashboard that stays empty.
        if not path.parent.is_dir():
            raise ConfigError(
                f"report.prometheus_file: {path.parent} is no folder. Give a file in the one that node_exporter's "
                "textfile collector reads, or leave it out."
            )
        self._path = path
        self._run = run
        self._complained = False
        # A registry of its own: the global one also holds figures of this Python process.
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        """By name and the values of its further labels."""
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All numbers that are known, for prometheus_client.

        The client's own gauges are not used: with PROMETHEUS_MULTIPROC_DIR in the environment they write files there.
        """
        for name, found in self._values.items():
            labels = ("run", *LABELS.get(name, ()))
            family = GaugeMetricFamily(f"{PREFIX}_{name}", HELP[name], labels=labels)
            for further, value in found.items():
                family.add_metric((self._run, *further), value)
            yield family

    def __call__(self, event: Event) -> None:
        """Take the numbers of an event."""
        if not self._noted(event):
            return
        self._set(step=event.step, updated_timestamp_seconds=time.time())
        self._write()

    def _noted(self, event: Event) -> bool:
        """Set the numbers of an event; False if it has none."""
        match event:
            case AttemptStarted():
                self._set(total_steps=event.total_steps, attempt=event.attempt, running=1)
            case TrainLine():
                self._note_train_line(event)
            case Validated():
                self._note_validation(event)
            case Spoke():
                self._note_speech(event)
            case Committed():
                self._note_checkpoint(event)
            case TimeSpent():
                for part in ("steps", "data", "validation", "saves"):
                    self._note("spent_seconds", getattr(event, f"{part}_s"), part)
            case AttemptEnded():
                self._set(running=0, exit_code=event.exit_code)
            case _:
                return False
        return True

    def _note_train_line(self, event: TrainLine) -> None:
        self._set(
            epoch=event.epoch,
            learning_rate=event.learning_rate,
            grad_norm=event.grad_norm,
            samples_per_second=event.samples_per_s,
            tokens_per_second=event.tokens_per_s,
            eta_seconds=event.eta_s,
            mfu=event.mfu,
        )
        self._set_losses("train", event.losses)

    def _note_speech(self, event: Spoke) -> None:
        self._set(speaking_limits_broken=len(event.broken))
        for language, speech in by_language(event).items():
            for name, value in speech_values(speech).items():
                self._note("speaking", value, language, name)

    def _note_validation(self, event: Validated) -> None:
        self._set_losses("validation", event.losses)
        for one in event.languages:
            self._note("language_loss", one.text_loss, one.language, "text")
            self._note("language_loss", one.mel_loss, one.language, "mel")
            if one.rise is not None:
                self._note("language_rise", one.rise, one.language)

    def _note_checkpoint(self, event: Committed) -> None:
        self._set(
            checkpoint_step=event.step,
            checkpoint_timestamp_seconds=time.time(),
            save_seconds=event.seconds,
            save_stall_seconds=event.stall_seconds,
        )

    def _set_losses(self, which: str, losses: Losses) -> None:
        for kind, value in (("text", losses.text_loss), ("mel", losses.mel_loss), ("total", losses.total)):
            self._note("loss", value, kind, which)
        self._note("mel_top1", losses.mel_top1, which)

    def _set(self, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None:
                self._note(name, value)

    def _note(self, name: str, value: float, *labels: str) -> None:
        self._values.setdefault(name, {})[labels] = value

    def _write(self) -> None:
        try:
            # It writes beside the file and renames, so the collector never reads half of it.
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:  # the training does not need the file, so this is a warning
            if not self._complained:
                logger.warning("report.prometheus_file: %s: %s; training goes on.", self._path, error.strerror)
            self._complained = True
