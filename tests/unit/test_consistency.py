"""Checks of a state that was loaded: each finds what it is for, none changes anything."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from indextts_job.checkpoint.history import History
from indextts_job.checkpoint.tensor_names import BASE
from indextts_job.model.batch import collate
from indextts_job.resume.consistency import consistency
from indextts_job.resume.reference import Reference
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import TrainState
from indextts_job.training.step import train_step
from tests.support.models import SMALL, engine, micro_batches, random_samples, small_model
from tests.support.values import SOUND, values

if TYPE_CHECKING:
    from indextts_job.training.engine import Engine

TOTAL, GLOBAL_BATCH = 20, 6
SCHEDULE = ScheduleConfig(learning_rate=1e-3, warmup_steps=4)


class Saved:
    """A run after three steps, and what its checkpoint records."""

    def __init__(self) -> None:
        samples = random_samples(GLOBAL_BATCH)
        self.engine: Engine = engine(small_model(pieces=50, base_pieces=40))
        for step in range(3):
            train_step(self.engine, micro_batches(samples, 200), step, learning_rate(step, TOTAL, SCHEDULE))
        optimizer = self.engine.optimizer
        assert isinstance(optimizer, torch.optim.AdamW)
        self.state = TrainState(
            model=self.engine.model,
            optimizer=optimizer,
            scaler=self.engine.scaler,
            step=3,
            history=History(samples=3 * GLOBAL_BATCH),
        )
        self.reference = Reference(collate(samples[:4], SMALL))
        self.frozen = {BASE + name: value.clone() for name, value in self.state.model.named_buffers()}
        self.values = values(
            reference=self.reference.losses(self.engine),
            learning_rate=optimizer.param_groups[0]["lr"],
            order=replace(SOUND.order, global_batch_samples=GLOBAL_BATCH),
            total_steps=TOTAL,
            config={"schedule": {"learning_rate": 1e-3, "warmup_steps": 4}},
        )

    def record(self, **changes: Any) -> None:
        self.values = replace(self.values, **changes)

    def record_losses(self, **changes: Any) -> None:
        assert self.values.reference is not None
        self.record(reference=replace(self.values.reference, **changes))

    def failed(self) -> dict[str, str]:
        found = consistency(self.state, self.engine, self.reference, self.values, self.frozen)
        return {check.name: check.found for check in found if not check.passed}

    def digest(self) -> str:
        digest = hashlib.sha256()
        for tensor in [*self.state.model.state_dict().values()]:
            digest.update(tensor.detach().numpy().tobytes())
        for moments in self.state.optimizer.state.values():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                digest.update(moments[key].numpy().tobytes())
        return digest.hexdigest()


def test_a_state_as_it_was_saved_passes_and_is_not_touched() -> None:
    saved = Saved()
    before, chance = saved.digest(), torch.get_rng_state()
    checks = list(consistency(saved.state, saved.engine, saved.reference, saved.values, saved.frozen))
    assert [check.name for check in checks if not check.passed] == []
    assert {check.name for check in checks} == {
        *("loss", "weights", "frozen rows", "moments", "position", "learning rate")
    }
    assert "0 apart" in checks[0].found
    assert saved.digest() == before
    assert torch.equal(torch.get_rng_state(), chance)
    assert saved.state.model.training


def weight(saved: Saved, change: Callable[[torch.Tensor], object]) -> None:
    with torch.no_grad():
        change(dict(saved.state.model.named_parameters())["gpt.h.0.mlp.c_fc.weight"])


def moment(saved: Saved, key: str, value: float) -> None:
    next(iter(saved.state.optimizer.state.values()))[key].view(-1)[0] = value


@pytest.mark.parametrize("which", ["text_loss", "mel_loss"])
def test_a_loss_that_is_not_a_number_is_never_the_same(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved()
    found = saved.reference.losses(saved.engine)
    assert found is not None
    poisoned = replace(found, **{which: float("nan")})  # type: ignore[arg-type]
    monkeypatch.setattr(Reference, "losses", lambda _reference, _engine: poisoned)
    assert set(saved.failed()) == {"loss"}


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("loss", lambda s: weight(s, lambda w: w.mul_(3.0))),
        ("loss", lambda s: s.record_losses(mel_loss=9.0)),
        ("loss", lambda s: s.record_losses(samples=("other",) * 4)),
        ("weights", lambda s: weight(s, lambda w: w.view(-1)[3:4].fill_(float("nan")))),
        ("frozen rows", lambda s: next(s.state.model.buffers())[7].add_(1e-6)),
        ("moments", lambda s: moment(s, "exp_avg_sq", -1.0)),
        ("moments", lambda s: moment(s, "exp_avg", float("inf"))),
        ("moments", lambda s: moment(s, "exp_avg_sq", float("nan"))),
        ("moments", lambda s: next(iter(s.state.optimizer.state.values()))["step"].fill_(7)),
        ("position", lambda s: setattr(s.state, "history", History(samples=99))),
        ("position", lambda s: s.record(total_steps=2)),
        ("learning rate", lambda s: s.record(learning_rate=2e-5)),
    ],
)
def test_what_is_wrong_is_found(name: str, spoil: Callable[[Saved], object]) -> None:
    saved = Saved()
    spoil(saved)
    assert name in saved.failed()


def test_another_precision_has_its_own_tolerance() -> None:
    saved = Saved()
    assert saved.values.reference is not None
    saved.record_losses(mel_loss=1.01 * saved.values.reference.mel_loss)
    assert "loss" in saved.failed()
    saved.record_losses(precision="bfloat16")
    assert saved.failed() == {}


def test_what_an_older_version_saved_has_nothing_to_compare_with() -> None:
    saved = Saved()
    saved.record(reference=None, learning_rate=None)
    assert saved.failed() == {}


def test_losses_of_copies_are_those_of_the_call_however_the_weights_change_meanwhile() -> None:
    saved = Saved()
    engine = saved.engine
    expected = saved.reference.losses(engine)
    copies = {f"model/{name}": value.detach().clone() for name, value in engine.model.named_parameters()}
    later = saved.reference.begun(engine, copies)
    before = saved.digest()
    assert later() == expected
    assert saved.digest() == before
    assert engine.model.training
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(2)
    assert later() == expected
    assert saved.reference.losses(engine) != expected


def test_a_rank_that_has_copied_a_part_computes_the_losses_at_the_call() -> None:
    saved = Saved()
    expected = saved.reference.losses(saved.engine)
    later = saved.reference.begun(saved.engine, {"model/speed_emb.weight": torch.zeros(2, 4)})
    with torch.no_grad():
        for parameter in saved.engine.model.parameters():
            parameter.mul_(2)
    assert later() == expected
