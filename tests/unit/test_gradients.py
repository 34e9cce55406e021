"""The exchange of gradients: every rank sends the same buckets in the same order, however its step ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from indextts_job.model.batch import PackedBatch, collate
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.engine import Engine
from indextts_job.training.gradients import ALIGNMENT, GradientSum
from indextts_job.training.state import owners_of
from indextts_job.training.step import Discarded, Updated, clear_gradients, reset_step, train_step
from tests.support.lockstep import LockstepGroup, on_ranks
from tests.support.models import SMALL, SMALL_BUCKET_BYTES, engine, random_samples, small_model

SAMPLES = random_samples(9)
FIRST, MIDDLE, LAST = "mel_head.weight", "gpt.h.0.mlp.c_fc.weight", "text_embedding.weight"
"""Parameters whose gradients a backward pass computes in this order."""


def share(group: ProcessGroup) -> list[PackedBatch]:
    return [collate([sample], SMALL) for sample in SAMPLES[group.rank :: group.world_size]]


def values(parts: Engine) -> Tensor:
    states = parts.optimizer.state.values()
    tensors = [*parts.model.parameters(), *(state[key] for state in states for key in ("exp_avg", "exp_avg_sq"))]
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@contextmanager
def out_of_memory_in_the_last_backward(parts: Engine, parameter: str, passes: int) -> Iterator[None]:
    """When the gradient of a parameter has been computed for the n-th time."""
    computed: list[None] = []

    def hook(_gradient: Tensor) -> None:
        computed.append(None)
        if len(computed) == passes:
            raise torch.OutOfMemoryError("says the test")

    handle = parts.model.get_parameter(parameter).register_hook(hook)
    yield
    handle.remove()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("parameter", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_rank_that_runs_out_of_memory_in_its_last_backward_pass_leaves_nobody_waiting(
    lost: int, parameter: str, *, sharded: bool
) -> None:
    def run(group: ProcessGroup) -> None:
        parts, undisturbed = (
            engine(small_model(dropout=0.1), dropout=0.1, group=group, sharded=sharded) for _ in range(2)
        )
        batches = share(group)
        for each in (parts, undisturbed):
            train_step(each, batches, 0, 1e-3)
        before = values(parts)
        passes = len(batches) if group.rank == lost else -1
        with out_of_memory_in_the_last_backward(parts, parameter, passes), pytest.raises(torch.OutOfMemoryError):
            train_step(parts, batches, 1, 1e-3)
        assert torch.equal(values(parts), before)
        reset_step(parts, 1)
        for each in (parts, undisturbed):
            assert isinstance(train_step(each, batches, 1, 1e-3), Updated)
        assert torch.equal(values(parts), values(undisturbed))

    on_ranks(3, run)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("filled", [[[1, 0], [1, 1]], [[1, 1], [0, 0]], [[0, 1], [1, 0]]])
def test_bins_without_samples_change_nothing(filled: list[list[int]], *, sharded: bool) -> None:
    """In the last micro-batch, in all of them, in turns; beside one rank that has all samples, a micro-batch each."""

    def run(group: ProcessGroup) -> Tensor:
        parts = engine(
            small_model().double(), precision="float64", group=group, sharded=sharded and group.world_size > 1
        )
        samples = iter(SAMPLES)
        bins = [[[next(samples)] if full else [] for full in rank] for rank in filled]
        mine = bins[group.rank] if group.world_size > 1 else [taken for rank in bins for taken in rank if taken]
        assert isinstance(train_step(parts, [collate(taken, SMALL) for taken in mine], 0, 1e-3), Updated)
        return torch.cat([p.detach().flatten() for p in parts.model.parameters()])

    (expected,) = on_ranks(1, run)
    for found in on_ranks(2, run):
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_a_step_that_is_given_up_before_its_last_micro_batch_sends_nothing() -> None:
    def run(group: ProcessGroup) -> None:
        parts, undisturbed = (engine(small_model(), group=group) for _ in range(2))
        assert train_step(parts, share(group), 0, 1e-3, lambda left: left == 1) == Discarded(2)
        for each in (parts, undisturbed):
            train_step(each, share(group), 0, 1e-3)
        assert torch.equal(values(parts), values(undisturbed))

    on_ranks(3, run)


def test_an_overflow_on_one_rank_lowers_the_scale_of_all() -> None:
    def run(group: ProcessGroup) -> tuple[float, int]:
        parts = engine(small_model(), precision="float16", group=group, sharded=True)
        name = dict(enumerate(name for name, _ in parts.model.named_parameters()))[parts.owners.index(1)]
        tries: list[float] = []

        def hook(gradient: Tensor) -> Tensor:
            tries.append(parts.scaler.get_scale())
            return gradient * torch.inf if parts.scaler.get_scale() > 30000 else gradient

        # In a tensor that rank 1 updates: the others do not have its sum.
        parts.model.get_parameter(name).register_hook(hook)
        outcome = train_step(parts, share(group), 0, 1e-3)
        assert isinstance(outcome, Updated)
        return parts.scaler.get_scale(), outcome.scaler_skips

    assert on_ranks(3, run) == [(2.0**14, 2)] * 3


@pytest.mark.parametrize("sharded", [False, True])
def test_the_layout_follows_from_the_parameters_alone(*, sharded: bool) -> None:
    def run(group: ProcessGroup) -> list[tuple[int | None, list[int]]]:
        model = small_model()
        owners = owners_of(model, group.world_size) if sharded else []
        gradients = GradientSum(model.parameters(), group, owners, SMALL_BUCKET_BYTES)
        places = {id(parameter): index for index, parameter in enumerate(model.parameters())}
        layout = [(bucket.owner, [places[id(p)] for p in bucket.parameters]) for bucket in gradients._buckets]
        for owner, indices in layout:
            assert indices == sorted(indices, reverse=True)  # in the order of a backward pass
            assert {owners[index] for index in indices} == {owner} if sharded else owner is None
        assert sorted(index for _, indices in layout for index in indices) == list(range(len(places)))
        last = {owner: number for number, (owner, _) in enumerate(layout)}
        for number, bucket in enumerate(gradients._buckets):
            assert bucket.flat.nbytes >= SMALL_BUCKET_BYTES or number in last.values()
            starts = [view.data_ptr() - bucket.flat.data_ptr() for view in bucket.views]
            assert all(start % (4 * ALIGNMENT) == 0 for start in starts)
        assert len(layout) > 3
        return layout

    first, *others = on_ranks(3, run)
    assert all(other == first for other in others)


def test_one_process_keeps_its_gradients_where_autograd_puts_them() -> None:
    parts = engine(small_model(), group=SingleProcess())
    clear_gradients(parts)
    assert all(p.grad is None for p in parts.model.parameters())


def test_buckets_are_sent_while_the_last_backward_pass_computes() -> None:
    def run(group: ProcessGroup) -> None:
        parts = engine(small_model(), group=group)
        in_time: list[int] = []
        for name in (FIRST, LAST):
            hook = parts.model.get_parameter(name).register_hook
            hook(lambda _gradient: in_time.append(len(parts.gradients._sent)))
        train_step(parts, share(group), 0, 1e-3)
        *earlier, first, last = in_time
        assert not any(earlier)
        assert first == 0
        assert last > len(parts.gradients._buckets) / 2

    on_ranks(2, run)


def test_a_gradient_that_is_not_in_its_bucket_is_noticed() -> None:
    def run(group: ProcessGroup) -> None:
        parts = engine(small_model(), group=group)
        clear_gradients(parts)
        parts.model.mel_head.weight.grad = torch.zeros_like(parts.model.mel_head.weight)
        with pytest.raises(RuntimeError, match="does not lie in its bucket"):
            parts.gradients.send_rest()

    on_ranks(2, run)


def test_a_gradient_that_changes_after_it_was_sent_is_noticed() -> None:
    def run(group: ProcessGroup) -> None:
        parts = engine(small_model(), group=group)
        clear_gradients(parts)
        with parts.gradients.sent_when_complete():
            torch.stack([parameter.sum() for parameter in parts.model.parameters()]).sum().backward()
            with pytest.raises(RuntimeError, match="after it had been sent"):
                parts.model.mel_head.weight.sum().backward()
        parts.gradients.finish()

    on_ranks(2, run)


def test_what_only_one_rank_has_is_used_on_no_other() -> None:
    """The group of the tests fills it with NaN; the norm and the weights are finite all the same."""

    def run(group: ProcessGroup) -> Tensor:
        assert isinstance(group, LockstepGroup)
        parts = engine(small_model(), group=group, sharded=True)
        train_step(parts, share(group), 0, 1e-3)
        found = torch.cat([p.detach().flatten() for p in parts.model.parameters()])
        assert bool(found.isfinite().all())
        return found

    first, *others = on_ranks(3, run)
    assert all(torch.equal(first, other) for other in others)
