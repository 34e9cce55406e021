"""The curves: every value of a train line and of a validation under its tag."""

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from indextts_job.report.tensorboard import TensorBoardCurves
from indextts_job.storage.remote_storage import open_storage
from tests.unit.test_report import EVENTS, TRAIN

LOSS_TAGS = {"text_loss": 3.25, "mel_loss": 4.5, "mel_top1": 0.125, "total": 4.25}


def test_every_value_has_a_curve(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    curves = TensorBoardCurves(storage, "run", 1, 0)
    for event, _ in EVENTS:
        curves(event)
    storage.flush()
    reader = EventAccumulator(str(tmp_path / "logs/run"))
    reader.Reload()
    found = {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    values = {f"{kind}/{name}": value for kind in ("train", "val") for name, value in LOSS_TAGS.items()}
    values |= {f"train/{name}": getattr(TRAIN, name) for name in ("grad_norm", "samples_per_s", "tokens_per_s")}
    values |= {"train/lr": TRAIN.learning_rate}
    assert found == {tag: [(TRAIN.step, pytest.approx(value))] for tag, value in values.items()}


def test_each_source_of_a_mixture_has_a_curve(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    curves = TensorBoardCurves(storage, "run", 1, 0)
    curves(replace(TRAIN, sources={"am": 3.5, "zh": 1.25}))
    storage.flush()
    reader = EventAccumulator(str(tmp_path / "logs/run"))
    reader.Reload()
    for source, loss in (("am", 3.5), ("zh", 1.25)):
        assert [(one.step, one.value) for one in reader.Scalars(f"train/{source}/mel_loss")] == [(TRAIN.step, loss)]
