"""The head's cross entropy: chunk by chunk as over all logits, in every type of its inputs."""

import os

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from indextts_job.model import head
from indextts_job.model.head import HeadTables, head_loss, row_losses

SHAPES = {"hidden": (100, 8), "weight": (30, 8), "bias": (30,), "frozen_weight": (7, 8), "frozen_bias": (7,)}
WIDTH = int(os.environ.get("HEAD_WIDTH", "128"))
"""`make long` takes the released model's, 1,280."""
EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Relative rounding of a value."""


def given(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def computed(
    values: dict[str, Tensor], targets: Tensor, *, frozen: bool, plain: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, number of hits and gradients: by the head, or by the formula over all logits at once."""
    own = {name: value.clone() for name, value in values.items()}
    trained = [own[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    hidden, weight, bias = trained
    if plain:
        parts = [weight, own["frozen_weight"]] if frozen else [weight]
        logits = hidden @ torch.cat(parts).T + torch.cat([bias, own["frozen_bias"]] if frozen else [bias])
        loss, correct = F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == targets).sum()
    else:
        kept = (own["frozen_weight"], own["frozen_bias"]) if frozen else (None, None)
        loss, correct, rows = head_loss(hidden, HeadTables(weight, bias, *kept), targets)
        assert not rows.requires_grad
        assert torch.allclose(rows, row_losses(hidden.detach(), HeadTables(weight, bias, *kept), targets)[0])
        assert rows.sum().item() == pytest.approx(loss.item())
    (3 * loss).backward()
    gradients = {name: value.grad for name, value in own.items() if value.grad is not None}
    return loss.detach(), correct, gradients


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_chunks_give_what_all_logits_at_once_give(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch, *, frozen: bool
) -> None:
    monkeypatch.setattr(head, "LEAST_CHUNK_ROWS", 16)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1)
    targets = torch.randint(0, 37 if frozen else 30, (100,), generator=torch.Generator().manual_seed(1))
    loss, correct, gradients = computed(given(dtype), targets, frozen=frozen, plain=False)
    expected = computed(given(dtype), targets, frozen=frozen, plain=True)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected[0].item(), rel=tolerance)
    assert correct.item() == expected[1].item()
    assert set(gradients) == {"hidden", "weight", "bias"}
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[2][name], rtol=0, atol=tolerance * float(gradient.abs().max())), name


def test_without_gradients_the_sums_are_the_same() -> None:
    values, targets = given(torch.float32), torch.arange(100) % 30
    tables = HeadTables(values["weight"], values["bias"])
    with torch.no_grad():
        loss, correct, _ = head_loss(values["hidden"], tables, targets)
    expected = computed(values, targets, frozen=False, plain=True)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert correct.item() == expected[1].item()


def test_a_rank_without_rows_has_a_loss_of_zero_and_gradients_of_zero() -> None:
    values = given(torch.float32)
    weight = values["weight"].requires_grad_()
    loss, correct, rows = head_loss(
        values["hidden"][:0], HeadTables(weight, values["bias"]), torch.empty(0, dtype=torch.long)
    )
    assert rows.shape == (0,)
    loss.backward()
    assert (loss.item(), correct.item()) == (0.0, 0)
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_inputs_cost_their_own_rounding_and_no_more(dtype: torch.dtype) -> None:
    # As many rows and columns as a large micro-batch and the largest published table have: a sum in float16 would
    # overflow, and one in bfloat16 would be off by half a per cent.
    rows, columns, width = 16_000, 60_510, WIDTH
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    weight = (0.1 * torch.randn(columns, width, generator=generator)).to(dtype).float()
    tables = HeadTables(weight, torch.zeros(columns))
    targets = torch.randint(0, columns, (rows,), generator=generator)
    with torch.no_grad():
        loss, *_ = head_loss(hidden, tables, targets)
        parts = zip(hidden.float().split(2000), targets.split(2000), strict=True)
        expected = sum(float(F.cross_entropy(some @ weight.T, wanted, reduction="sum")) for some, wanted in parts)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # The gradient of a row depends on this row alone. Scaled as a training in float16 scales it.
    few, scale = slice(0, 300), 2.0**16 / rows
    ours, plain = hidden[few].clone().requires_grad_(), hidden[few].float().requires_grad_()
    (scale * head_loss(ours, tables, targets[few])[0]).backward()
    (scale * F.cross_entropy(plain @ weight.T, targets[few], reduction="sum")).backward()
    assert ours.grad is not None
    assert plain.grad is not None
    assert float((ours.grad.float() - plain.grad).norm() / plain.grad.norm()) < 2 * EPSILON[dtype]
