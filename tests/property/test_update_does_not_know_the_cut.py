"""I3: any packing capacity, any set of samples: the same gradient and the same update."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from indextts_job.model.batch import PackedBatch
from indextts_job.model.config import GPTConfig
from indextts_job.training.step import Updated, train_step
from tests.support.models import SMALL, SMALL_2_5, engine, micro_batches, random_samples, small_model

LONGEST = 97
"""Tokens of the longest possible sample: 34 + 20 + 2 + 40 + 1."""


def gradient_and_update(
    dtype: torch.dtype, batches: list[PackedBatch], config: GPTConfig = SMALL
) -> tuple[Tensor, Tensor]:
    model = small_model(config=config).to(dtype)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert isinstance(train_step(engine(model), batches, 0, 1e-3), Updated)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return gradient, torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


Cut = tuple[GPTConfig, list[PackedBatch], list[PackedBatch]]


@st.composite
def two_cuts(draw: st.DrawFn) -> Cut:
    """A version of the model, and the same samples, cut in two ways."""
    config = draw(st.sampled_from([SMALL, SMALL_2_5]))
    samples = random_samples(draw(st.integers(1, 12)), draw(st.integers(0, 1000)), config)
    one, other = (micro_batches(samples, draw(st.integers(LONGEST, 800)), config) for _ in range(2))
    return config, one, other


@settings(max_examples=25)
@given(two_cuts())
def test_any_capacity_gives_the_same_update_in_double_precision(cuts: Cut) -> None:
    config, *both = cuts
    (gradient, update), (gradient_2, update_2) = (gradient_and_update(torch.float64, cut, config) for cut in both)
    assert relative(gradient, gradient_2) < 1e-12
    # The first update of Adam divides a gradient by its own size: rounding of tiny gradients grows by 1 / eps.
    assert relative(update, update_2) < 1e-10


@settings(max_examples=25)
@given(two_cuts())
def test_any_capacity_gives_the_same_gradient_and_weights_in_single_precision(cuts: Cut) -> None:
    config, *both = cuts
    (gradient, update), (gradient_2, update_2) = (gradient_and_update(torch.float32, cut, config) for cut in both)
    assert relative(gradient, gradient_2) < 1e-5
    before = torch.cat([p.detach().flatten() for p in small_model(config=config).parameters()])
    assert relative(before + update, before + update_2) < 1e-5
