"""The numbers of a run for Prometheus, as the text file that node_exporter's textfile collector reads.

The file is replaced whole after every event that changes a number, so a reader never sees half of it.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from indextts_job.errors import ConfigError
from indextts_job.report.events import AttemptEnded, AttemptStarted, Committed, Event, TimeSpent, TrainLine, Validated

logger = logging.getLogger(__name__)

PREFIX = "indextts_job"
HELP = {
    "step": "Optimizer steps that are done.",
    "total_steps": "Optimizer steps of the whole run.",
    "attempt": "Number of the attempt.",
    "running": "1 while the attempt trains, 0 after its end.",
    "exit_code": "Of the attempt, after its end.",
    "updated_timestamp_seconds": "When this was written.",
    "epoch": "Passes over the training set.",
    "loss": "Mean losses; kind is text, mel or total, set is train or validation.",
    "mel_top1": "Share of codes whose arg-max is right; set is train or validation.",
    "learning_rate": "Of the last update.",
    "grad_norm": "Mean norm of the gradient before clipping.",
    "samples_per_second": "Training rate.",
    "tokens_per_second": "Training rate.",
    "mfu": "Model FLOPs utilisation, where the card's peak is known.",
    "eta_seconds": "Until the run is complete, at this rate.",
    "checkpoint_step": "Step of the last committed checkpoint.",
    "checkpoint_timestamp_seconds": "When it was committed.",
    "save_seconds": "How long its save took.",
    "save_stall_seconds": "How long training waited for it.",
    "spent_seconds": "Time of the attempt by part: steps, data, validation, saves.",
}
Labels = tuple[tuple[str, str], ...]


class PrometheusFile:
    """Writes numbers as they come."""

    def __init__(self, path: Path, run: str) -> None:
        """Begin.

        Args:
            path: Of the file.
            run: Its label.

        Raises:
            ConfigError: There is no folder for it.
        """
        if not path.parent.is_dir():
            raise ConfigError(
                f"report.prometheus_file: {path.parent} is no folder. Give a file in the one that node_exporter's "
                "textfile collector reads, or leave it out."
            )
        self._path = path
        self._run = run
        self._complained = False
        self._values: dict[tuple[str, Labels], float] = {}

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, AttemptStarted):
            self._set(total_steps=event.total_steps, attempt=event.attempt, running=1)
        elif isinstance(event, TrainLine):
            self._set(
                epoch=event.epoch,
                learning_rate=event.learning_rate,
                grad_norm=event.grad_norm,
                samples_per_second=event.samples_per_s,
                tokens_per_second=event.tokens_per_s,
                eta_seconds=event.eta_s,
                mfu=event.mfu,
            )
            self._losses("train", asdict(event.losses))
        elif isinstance(event, Validated):
            self._losses("validation", asdict(event.losses))
        elif isinstance(event, Committed):
            self._set(
                checkpoint_step=event.step,
                checkpoint_timestamp_seconds=time.time(),
                save_seconds=event.seconds,
                save_stall_seconds=event.stall_seconds,
            )
        elif isinstance(event, TimeSpent):
            for part in ("steps", "data", "validation", "saves"):
                self._values["spent_seconds", (("part", part),)] = getattr(event, f"{part}_s")
        elif isinstance(event, AttemptEnded):
            self._set(running=0, exit_code=event.exit_code)
        else:
            return
        self._set(step=event.step, updated_timestamp_seconds=time.time())
        self._write()

    def _set(self, **values: float | None) -> None:
        self._values |= {(name, ()): value for name, value in values.items() if value is not None}

    def _losses(self, which: str, losses: Mapping[str, float]) -> None:
        for kind, key in (("text", "text_loss"), ("mel", "mel_loss"), ("total", "total")):
            self._values["loss", (("kind", kind), ("set", which))] = losses[key]
        self._values["mel_top1", (("set", which),)] = losses["mel_top1"]

    def _write(self) -> None:
        lines = []
        for name, text in HELP.items():
            found = [(labels, value) for (known, labels), value in self._values.items() if known == name]
            if found:
                lines += [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} gauge"]
                lines += [f"{PREFIX}_{name}{self._labels(labels)} {value!r}" for labels, value in found]
        temporary = self._path.with_suffix(".prom.new")
        try:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:  # numbers for a dashboard are not worth a night of training
            if not self._complained:
                logger.warning("report.prometheus_file: %s: %s; training goes on.", self._path, error.strerror)
            self._complained = True

    def _labels(self, labels: Labels) -> str:
        pairs = (("run", self._run), *labels)
        escaped = ((key, text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for key, text in pairs)
        return "{" + ",".join(f'{key}="{text}"' for key, text in escaped) + "}"
