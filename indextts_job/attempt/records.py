"""Makes the records of an attempt: its own, the values of its checkpoints, and the durations of its start."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from indextts_job.attempt.inputs import Inputs
from indextts_job.attempt.start import Start
from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.history import History
from indextts_job.checkpoint.values import (
    CheckpointValues,
    DatasetRecord,
    Environment,
    Lineage,
    ManifestRecord,
    ParametersRecord,
    TokenizerRecord,
    VocabularyRecord,
)
from indextts_job.config import RunConfig, flatten
from indextts_job.data.dataset import Dataset
from indextts_job.data.order import SampleOrder
from indextts_job.hardware.plan import HardwareFacts, Plan
from indextts_job.preemption.deadline import Pace
from indextts_job.redaction import redacted, redacted_values
from indextts_job.report.attempts import attempts
from indextts_job.report.events import Emit
from indextts_job.report.journal import Journal, SampleLog
from indextts_job.report.liveness import pid_namespace
from indextts_job.report.notify import NotifyCommand
from indextts_job.report.progress import progress_readers
from indextts_job.report.tensorboard import TensorBoardCurves
from indextts_job.report.trackers import tracked_run, tracker_readers
from indextts_job.report.trackers.tracker import Tracked
from indextts_job.scheduler import read_scheduler
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training.engine import Engine
from indextts_job.training.state import TrainState, count_parameters
from indextts_job.version import program_version


class Laps:
    """Durations of the parts of a start-up."""

    def __init__(self, started_at_s: float) -> None:
        self._started_at_s = self._last_s = started_at_s
        self._laps: list[str] = []

    def began(self) -> datetime:
        """Wall time at which the process began."""
        # Computed back from the monotonic clock, because the wall clock may be set meanwhile.
        return datetime.now(UTC) - timedelta(seconds=time.monotonic() - self._started_at_s)

    def done(self, name: str) -> None:
        """End a part; the next one begins."""
        now_s = time.monotonic()
        self._laps.append(f"{name} {now_s - self._last_s:.1f} s")
        self._last_s = now_s

    def __str__(self) -> str:
        return f"{self._last_s - self._started_at_s:.1f} s: {', '.join(self._laps)}"


def attempt_record(  # noqa: PLR0913  # all by name
    *, facts: HardwareFacts, world_size: int, step: int, resume: str, launched: datetime, previous: str, model: str
) -> AttemptRecord:
    """The record that an attempt leaves at its start. Other attempts and `status` read it.

    Args:
        world_size: Number of processes.
        step: The position that it begins at.
        resume: The setting `resume.source`.
        launched: Start of the process.
        previous: End of the attempt before, in words.
        model: Version of the model.
    """
    return AttemptRecord(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        launched=launched.isoformat(timespec="milliseconds"),
        pid=os.getpid(),
        pid_namespace=pid_namespace(),
        # Command lines may hold URLs with passwords, and people share a run's folder.
        command=redacted(shlex.join(sys.argv)),
        node=platform.node(),
        device=facts.name if world_size == 1 else f"{world_size} x {facts.name}",
        driver=facts.driver,
        scheduler=read_scheduler(os.environ),
        previous_end=redacted(previous),
        step=step,
        resume=redacted(resume),
        model=model,
    )


def run_readers(config: RunConfig, storage: RunStorage, attempt: int, train_set: Dataset, step: int) -> list[Emit]:
    """The readers that store events: journal, curves, and those that the settings ask for."""
    report = config.report
    readers: list[Emit] = [
        Journal(storage, attempt),
        TensorBoardCurves(storage, report.run_name, attempt, step),
    ]
    readers += progress_readers(os.environ)
    if report.prometheus_file:
        # Its library takes a sixth of a second to import, which most starts need not wait for.
        from indextts_job.report.prometheus import PrometheusFile  # noqa: PLC0415

        readers.append(PrometheusFile(Path(report.prometheus_file), config.run))
    if report.sample_log:
        readers.append(SampleLog(storage, attempt, train_set.id_of))

    if report.command:
        readers.append(NotifyCommand(report.command, report.command_seconds, redacted(config.run)))

    def tracked() -> Tracked:
        settings = redacted_values(flatten(config.to_json()))
        return tracked_run(
            redacted(config.run), report.tracker_project, settings, attempts(storage, curves=True), attempt
        )

    return readers + tracker_readers(report.trackers, tracked)


@dataclass(frozen=True, slots=True)
class ValuesRecorder:
    """Assembles the values of a checkpoint from the constants of the attempt and the present state."""

    constant: CheckpointValues
    """Values that are equal in every checkpoint of the attempt; the history in them is empty."""
    engine: Engine
    order: SampleOrder

    def __call__(self, state: TrainState, pace: Pace) -> CheckpointValues:
        """The values of a checkpoint of `state`, without its reference losses, which come later.

        Args:
            state: The present state.
            pace: Durations measured so far.
        """
        return replace(
            self.constant,
            history=state.history,
            epochs=self.order.epochs_after(state.history.samples) if self.constant.order.sources else None,
            scaler=state.scaler_values(),
            # Group 0 has the factor 1, so its rate is the schedule's.
            learning_rate=self.engine.optimizer.param_groups[0]["lr"] if state.step else None,
            pace=pace,
        )


def constant_values(
    document: Mapping[str, Any], inputs: Inputs, start: Start, machine: Environment
) -> CheckpointValues:
    """The values that are equal in every checkpoint of an attempt.

    Args:
        document: The configuration as it is recorded, with secrets.
    """
    vocabulary = start.state.model.vocabulary
    return CheckpointValues(
        # Checkpoints are shared, and URLs may hold passwords and signatures.
        config=redacted_values(dict(document)),
        model_config=redacted_values(dict(inputs.model_document)),
        order=inputs.order_record,
        total_steps=inputs.total_steps,
        dataset=DatasetRecord(
            manifests=tuple(redacted(manifest) for manifest in inputs.sources.arguments),
            languages=inputs.train_set.languages,
            codes=int(inputs.train_set.code_lengths.sum()),
            skipped_samples=tuple(sample.id for sample in inputs.train_set.skipped),
            files=_manifests(inputs),
        ),
        tokenizer=TokenizerRecord(pieces=inputs.tokenizer.pieces, fingerprint=inputs.tokenizer.fingerprint()),
        vocabulary=VocabularyRecord(
            pieces=vocabulary.pieces, base_pieces=vocabulary.base_pieces, inserted_at=vocabulary.inserted_at
        ),
        trained_languages=start.trained_languages,
        adapter=start.state.model.adapter.record() if start.state.model.adapter else None,
        model=str(inputs.model.version),
        parameters=ParametersRecord(trained=count_parameters(start.state.model)),
        lineage=_without_secrets(start.lineage),
        environment=machine,
        history=History(),
        scaler=None,
    )


def _manifests(inputs: Inputs) -> tuple[ManifestRecord, ...]:
    """Totals of each manifest of the training set."""
    train_set, rate = inputs.train_set, inputs.model.version.codes_per_second
    named = zip(inputs.sources.arguments, train_set.parts, train_set.part_fingerprints, strict=True)
    return tuple(
        ManifestRecord(
            manifest=redacted(argument),
            samples=len(part),
            languages=part.language_counts,
            hours=round(int(part.code_lengths.sum()) / rate / 3600, 4),
            fingerprint=fingerprint,
        )
        for argument, part, fingerprint in named
    )


def _without_secrets(lineage: Lineage) -> Lineage:
    return replace(
        lineage,
        run=None if lineage.run is None else redacted(lineage.run),
        checkpoint=None if lineage.checkpoint is None else redacted(lineage.checkpoint),
    )


def environment(facts: HardwareFacts, plan: Plan, world_size: int) -> Environment:
    """Hardware and software of the attempt."""
    return Environment(
        indextts_job=program_version(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        node=platform.node(),
        hardware=asdict(facts),
        plan=asdict(plan),
        world_size=world_size,
    )
