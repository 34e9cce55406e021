"""What an attempt writes down about itself: its record, its checkpoints' constant values, how its start went."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from indextts_job.attempt.inputs import Inputs
from indextts_job.attempt.start import Start
from indextts_job.config import RunConfig
from indextts_job.data.dataset import Dataset
from indextts_job.data.order import ORDER_VERSION
from indextts_job.hardware.plan import HardwareFacts, Plan
from indextts_job.redaction import redacted, redacted_values
from indextts_job.report.events import Emit
from indextts_job.report.journal import Journal, SampleLog
from indextts_job.report.liveness import pid_namespace
from indextts_job.report.progress import progress_readers
from indextts_job.report.prometheus import PrometheusFile
from indextts_job.report.tensorboard import TensorBoardCurves
from indextts_job.scheduler import read_scheduler
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training.state import count_parameters
from indextts_job.version import program_version


class Laps:
    """Where the time of a start-up went."""

    def __init__(self, started_at_s: float) -> None:
        self._started_at_s = self._last_s = started_at_s
        self._laps: list[str] = []

    def began(self) -> datetime:
        """The time at which it began."""
        return datetime.now(UTC) - timedelta(seconds=time.monotonic() - self._started_at_s)

    def done(self, name: str) -> None:
        """One part of it is over."""
        now_s = time.monotonic()
        self._laps.append(f"{name} {now_s - self._last_s:.1f} s")
        self._last_s = now_s

    def __str__(self) -> str:
        return f"{self._last_s - self._started_at_s:.1f} s: {', '.join(self._laps)}"


def attempt_record(  # all of it by name
    *, facts: HardwareFacts, world_size: int, step: int, resume: str, launched: datetime, previous: str
) -> dict[str, Any]:
    """What is kept of an attempt as it begins, where others look for the writer of a run.

    Args:
        facts: The device.
        world_size: Processes.
        step: Where it goes on.
        resume: What it was asked to go on from.
        launched: When the process began.
        previous: How the attempt before it ended.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "launched": launched.isoformat(timespec="milliseconds"),
        "pid": os.getpid(),
        "pid_namespace": pid_namespace(),
        "command": redacted(shlex.join(sys.argv)),
        "node": platform.node(),
        "device": facts.name if world_size == 1 else f"{world_size} x {facts.name}",
        "driver": facts.driver,
        "scheduler": read_scheduler(os.environ),
        "previous_end": redacted(previous),
        "step": step,
        "resume": redacted(resume),
    }


def run_readers(config: RunConfig, storage: RunStorage, attempt: int, train_set: Dataset, step: int) -> list[Emit]:
    """Who writes the events of an attempt down: journal, curves, and what else is asked for."""
    readers: list[Emit] = [
        Journal(storage, attempt),
        TensorBoardCurves(storage, config.report.run_name, attempt, step),
    ]
    readers += progress_readers(os.environ)
    if config.report.prometheus_file:
        readers.append(PrometheusFile(Path(config.report.prometheus_file), config.run))
    if config.report.sample_log:
        readers.append(SampleLog(storage, attempt, lambda index: train_set.entries[index].id))
    return readers


def constant_values(config: RunConfig, inputs: Inputs, start: Start, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What every checkpoint of an attempt records besides its state."""
    vocabulary = start.state.model.vocabulary
    return {
        # A checkpoint is read by many; URLs may hold passwords and signatures.
        "config": redacted_values(config.to_json()),
        "model_config": redacted_values(dict(inputs.model_document)),
        "order": {
            "version": ORDER_VERSION,
            "seed": config.recipe.seed,
            "global_batch_samples": config.recipe.global_batch_samples,
            "num_samples": len(inputs.train_set),
            "dataset_fingerprint": inputs.train_set.fingerprint,
        },
        "total_steps": inputs.total_steps,
        "dataset": {
            "manifests": redacted_values(list(config.data.train_manifests)),
            "languages": inputs.train_set.languages,
            "codes": sum(inputs.train_set.code_lengths),
            "skipped_samples": [sample.id for sample in inputs.train_set.skipped],
        },
        "tokenizer": {"pieces": inputs.tokenizer.pieces, "fingerprint": inputs.tokenizer.fingerprint()},
        "vocabulary": {"pieces": vocabulary.pieces, "base_pieces": vocabulary.base_pieces},
        "parameters": {"trained": count_parameters(start.state.model)},
        "lineage": redacted_values(dict(start.lineage)),
        "environment": dict(machine),
    }


def environment(facts: HardwareFacts, plan: Plan, world_size: int) -> dict[str, Any]:
    """What the attempt runs on, for people who read a checkpoint later."""
    return {
        "indextts_job": program_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "node": platform.node(),
        "hardware": asdict(facts),
        "plan": asdict(plan),
        "world_size": world_size,
    }
