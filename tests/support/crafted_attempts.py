"""Attempts with chosen fields, for tests of what is told about them."""

from typing import Any

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.history import Losses
from indextts_job.parsing import parsed
from indextts_job.report.attempts import Attempt
from indextts_job.report.events import Committed, TimeSpent, TrainLine, Validated
from indextts_job.report.journal import Logged

RECORDED = ("started", "launched", "node", "device", "scheduler")


def losses(value: float) -> Losses:
    return Losses(text_loss=value, mel_loss=value, mel_top1=0.5, total=value)


def train_line(step: int, **changes: Any) -> Logged[TrainLine]:
    document = {
        "step": step,
        "epoch": 0.1,
        "losses": losses(2.0),
        **{"learning_rate": 1e-4, "samples_per_s": 10.0, "tokens_per_s": 4000.0, "grad_norm": 1.0, "eta_s": 9.0},
        **changes,
    }
    return Logged("", TrainLine(**document))


def validation(step: int, total: float, *, best: bool = True) -> Logged[Validated]:
    return Logged("", Validated(step=step, losses=losses(total), best=best, samples=4, seconds=1.0))


def committed(step: int, time: str) -> Logged[Committed]:
    document = {"step": step, "name": "step", "tags": [], "bytes_written": 1, "bytes_total": 1}
    return Logged(time, parsed({**document, "seconds": 1.0, "stall_seconds": 0.1}, Committed, "event"))


def spent(step: int, steps: float, data: float = 0.0, validation: float = 0.0, saves: float = 0.0) -> Logged[TimeSpent]:
    return Logged("", TimeSpent(step=step, steps_s=steps, data_s=data, validation_s=validation, saves_s=saves))


def crafted(number: int = 1, from_step: int = 0, **changes: Any) -> Attempt:
    """An attempt; fields of its record are given by their names too."""
    record = {name: changes.pop(name) for name in RECORDED if name in changes}
    return Attempt(number=number, record=AttemptRecord(step=from_step, **record), **changes)
