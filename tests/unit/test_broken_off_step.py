"""A step that does not come to its end: out of memory anywhere, given up, not finite. It can be done again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from indextts_job.errors import MAX_FINDINGS_SHOWN, DeviceMemoryError, NonFiniteError
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import Engine
from indextts_job.training.step import Discarded, Updated, reset_step, train_step
from tests.support.lockstep import on_ranks
from tests.support.models import SMALL, engine, micro_batches, random_samples, small_model

SAMPLES = random_samples(11)
BATCHES = micro_batches(SAMPLES, 222)


def weights(parts: Engine) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parts.model.parameters()])


def moments(parts: Engine) -> Tensor:
    states = parts.optimizer.state.values()
    return torch.cat([state[key].flatten() for state in states for key in ("exp_avg", "exp_avg_sq")])


@contextmanager
def out_of_memory_in(parts: Engine, micro_batch: int) -> Iterator[list[int]]:
    """The n-th forward pass, from 0, finds no memory; gives the passes that were begun."""
    begun: list[int] = []

    def hook(*_given: object) -> None:
        begun.append(len(begun))
        if begun[-1] == micro_batch:
            raise torch.OutOfMemoryError("says the test")

    handle = parts.model.register_forward_pre_hook(hook)
    yield begun
    handle.remove()


@contextmanager
def out_of_memory_in_the_update(parts: Engine) -> Iterator[None]:
    """After the optimizer has counted the update, before it has changed anything."""

    def hook(optimizer: torch.optim.Optimizer, *_given: object) -> None:
        for values in optimizer.state.values():
            values["step"] += 1
        raise torch.OutOfMemoryError("says the test")

    handle = parts.optimizer.register_step_pre_hook(hook)
    yield
    handle.remove()


def broken_in_a_micro_batch(parts: Engine, step: int) -> None:
    with out_of_memory_in(parts, 1) as begun, pytest.raises(torch.OutOfMemoryError, match="micro-batch"):
        train_step(parts, BATCHES, step, 1e-3)
    assert begun == [0, 1]  # nothing is computed any more that would be thrown away


def broken_in_the_update(parts: Engine, step: int) -> None:
    with out_of_memory_in_the_update(parts), pytest.raises(torch.OutOfMemoryError, match="says the test"):
        train_step(parts, BATCHES, step, 1e-3)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("broken", [broken_in_a_micro_batch, broken_in_the_update])
def test_a_step_that_ran_out_of_memory_is_done_again_as_if_nothing_had_been(
    broken: Callable[[Engine, int], None], at: int, precision: str
) -> None:
    parts, undisturbed = (engine(small_model(dropout=0.1), precision=precision, dropout=0.1) for _ in range(2))
    for step in range(at):
        for each in (parts, undisturbed):
            train_step(each, BATCHES, step, 1e-3)
    before = weights(parts), moments(parts)
    broken(parts, at)
    assert torch.equal(weights(parts), before[0])
    assert torch.equal(moments(parts), before[1])
    reset_step(parts, at)
    assert all(p.grad is None for p in parts.model.parameters())
    again, expected = (train_step(each, BATCHES, at, 1e-3) for each in (parts, undisturbed))
    assert isinstance(again, Updated)
    assert isinstance(expected, Updated)
    assert again.losses == expected.losses
    assert torch.equal(weights(parts), weights(undisturbed))
    assert torch.equal(moments(parts), moments(undisturbed))
    assert {float(values["step"]) for values in parts.optimizer.state.values()} == {at + 1.0}
    assert parts.scaler.get_scale() == undisturbed.scaler.get_scale()


def share(group: ProcessGroup) -> list[PackedBatch]:
    return [collate([sample], SMALL) for sample in SAMPLES[group.rank : 6 : group.world_size]]


@pytest.mark.parametrize("lost", [0, 1])
def test_all_ranks_break_off_when_one_of_them_has_no_memory(lost: int) -> None:
    def run(group: ProcessGroup) -> tuple[int, str]:
        parts = engine(small_model(), group=group)
        at = 1 if group.rank == lost else -1
        with out_of_memory_in(parts, at) as begun, pytest.raises(torch.OutOfMemoryError) as caught:
            train_step(parts, share(group), 0, 1e-3)
        assert torch.equal(weights(parts), weights(engine(small_model())))
        return len(begun), str(caught.value)

    message = "out of memory in a micro-batch, on this or another rank"
    assert on_ranks(2, run) == [(2 if rank == lost else 3, message) for rank in range(2)]


def test_in_the_update_of_several_ranks_it_is_the_end_of_the_attempt() -> None:
    def run(group: ProcessGroup) -> str:
        parts = engine(small_model(), group=group)
        with out_of_memory_in_the_update(parts), pytest.raises(DeviceMemoryError) as caught:
            train_step(parts, share(group), 0, 1e-3)
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
        return str(caught.value)

    for rank, message in enumerate(on_ranks(2, run)):
        assert message == (
            f"rank {rank} ran out of memory in the update, which the others may have done. Set "
            "hardware.capacity_tokens lower. The last checkpoint is intact."
        )


def test_it_is_asked_before_every_micro_batch_whether_to_give_up() -> None:
    asked: list[int] = []

    def discard(left: int) -> bool:
        asked.append(left)
        return False

    assert isinstance(train_step(engine(small_model()), BATCHES, 0, 1e-3, discard), Updated)
    assert asked == list(range(len(BATCHES), 0, -1))


@pytest.mark.parametrize("left", range(1, len(BATCHES) + 1))
def test_a_cycle_that_is_given_up_leaves_no_gradient(left: int) -> None:
    parts = engine(small_model())
    train_step(parts, BATCHES, 0, 1e-3)
    assert train_step(parts, BATCHES, 1, 1e-3, lambda now: now == left) == Discarded(len(BATCHES) - left)
    assert all(p.grad is None for p in parts.model.parameters())


def test_a_step_that_is_not_finite_leaves_no_gradient_and_says_what_to_do() -> None:
    model = small_model()
    model.speed_emb.weight.register_hook(lambda gradient: gradient * torch.nan)
    parts = engine(model)
    with pytest.raises(NonFiniteError) as caught:
        train_step(parts, BATCHES, 3, 1e-3)
    assert all(p.grad is None for p in model.parameters())
    names = ", ".join(name for batch in BATCHES for name in batch.sample_ids)
    assert str(caught.value) == (
        f"step 3: the gradient norm is nan, not finite. The weights were not touched. Samples: {names}. Look at "
        "these samples (codes that do not belong to the text, say), lower schedule.learning_rate, or use bfloat16 or "
        "float32 (hardware.precision). The last checkpoint is intact."
    )


@pytest.mark.parametrize("more", [0, 1])
def test_only_the_first_names_are_shown(more: int) -> None:
    samples = random_samples(MAX_FINDINGS_SHOWN + more)
    samples = [replace(sample, condition=sample.condition * torch.nan) for sample in samples]
    with pytest.raises(NonFiniteError) as caught:
        train_step(engine(small_model()), [collate(samples, SMALL), collate([], SMALL)], 3, 1e-3)
    shown = ", ".join(f"sample-{number}" for number in range(MAX_FINDINGS_SHOWN)) + (" …" if more else "")
    expected = f"the loss of 1 of 2 micro-batches is not finite. The weights were not touched. Samples: {shown}. Look"
    assert expected in str(caught.value)


@pytest.mark.parametrize("head", ["mel_head", "text_head"])
def test_a_loss_is_not_finite_when_one_of_its_parts_is_not(head: str) -> None:
    model = small_model()
    with torch.no_grad():
        model.get_parameter(f"{head}.bias").fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=f"the loss of {len(BATCHES)} of {len(BATCHES)} micro-batches is not"):
        train_step(engine(model), BATCHES, 3, 1e-3)


def test_float16_that_overflows_without_any_scaling_is_an_error() -> None:
    model = small_model()
    model.speed_emb.weight.register_hook(lambda gradient: gradient * torch.inf)
    parts = engine(model, precision="float16")
    parts.scaler.load_state_dict({**parts.scaler.state_dict(), "scale": 2.0})
    with pytest.raises(NonFiniteError, match=r"gradient norm is (inf|nan)"):
        train_step(parts, BATCHES, 3, 1e-3)
    assert parts.scaler.get_scale() == 1.0


def test_a_loss_that_is_not_finite_for_another_reason_is_not_tried_again() -> None:
    """The gradients are finite, so a smaller scale would change nothing."""
    model = small_model()
    for parameter in model.parameters():
        parameter.register_hook(torch.zeros_like)
    parts = engine(model, precision="float16")
    scale = parts.scaler.get_scale()
    poisoned = [replace(sample, condition=sample.condition * torch.nan) for sample in SAMPLES]
    with pytest.raises(NonFiniteError, match="the loss of 1 of 1"):
        train_step(parts, [collate(poisoned, SMALL)], 3, 1e-3)
    assert parts.scaler.get_scale() == scale


def test_without_a_gpu_its_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    reset_step(engine(small_model()), 0)
    assert not emptied


def test_durations_are_of_the_try_that_was_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    instants = iter([100.0, 106.0, 107.5])
    monkeypatch.setattr("indextts_job.training.step_clock.time", SimpleNamespace(monotonic=lambda: next(instants)))
    outcome = train_step(engine(small_model()), BATCHES[:3], 0, 1e-3)
    assert isinstance(outcome, Updated)
    assert (outcome.micro_batch_s, outcome.update_s, outcome.scaler_skips) == (2.0, 1.5, 0)
