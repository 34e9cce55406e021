"""What a step works on: micro-batches on a device, mixed precision, losses over micro-batches of several ranks."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from indextts_job.hardware.plan import Precision
from indextts_job.model.unified_voice import LossSums
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import autocast, mean_losses, to_device
from indextts_job.training.recipe import RecipeConfig
from tests.support.lockstep import on_ranks
from tests.support.models import engine, micro_batches, random_samples, small_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vectors_take_the_type_of_the_model_and_indices_keep_theirs(dtype: torch.dtype) -> None:
    (batch,) = micro_batches(random_samples(3), 10_000)
    on_device = to_device(batch, CPU, dtype)
    for field in fields(on_device):
        if field.name == "edges":
            continue
        given, found = torch.from_numpy(getattr(batch, field.name)), getattr(on_device, field.name)
        assert found.device == CPU
        assert found.dtype == (dtype if field.name in ("condition", "emotion") else given.dtype)
        assert torch.equal(found, given.to(found.dtype))
    assert on_device.edges.cu_seqlens.dtype == torch.int32
    assert on_device.edges.cu_seqlens.tolist() == batch.cu_seqlens.tolist()
    assert on_device.edges.lengths == np.diff(batch.cu_seqlens).tolist()
    assert to_device(batch, CPU).condition.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_products_are_computed_in_the_precision(precision: Precision, expected: torch.dtype) -> None:
    one = torch.ones(2, 2)
    with autocast(CPU, precision):
        assert (one @ one).dtype == expected
        assert torch.is_autocast_enabled("cpu") == (precision != "float32")


def test_losses_are_sums_over_all_ranks_divided_by_all_targets() -> None:
    def part(text: float, mel: float, correct: int) -> LossSums:
        return LossSums(torch.tensor(text), torch.tensor(mel), torch.tensor(correct), torch.empty(0))

    shares = [[part(3.0, 5.0, 2), part(1.0, 7.0, 1)], []]

    def run(group: ProcessGroup) -> None:
        parts = engine(small_model(), group=group)
        losses = mean_losses(shares[group.rank], 8.0, 4.0, parts)
        assert (losses.text_loss, losses.mel_loss, losses.mel_top1) == (0.5, 3.0, 0.75)
        recipe = RecipeConfig()
        assert losses.total == recipe.text_loss_weight * 0.5 + recipe.mel_loss_weight * 3.0

    on_ranks(2, run)


def test_losses_are_added_up_in_double_precision() -> None:
    values = [torch.tensor(value) for value in (1.0, 1e-8)]
    parts = [LossSums(value, value, torch.tensor(0), torch.empty(0)) for value in values]
    assert mean_losses(parts, 1.0, 1.0, engine(small_model())).text_loss > 1.0
