"""Base rows of an old checkpoint: weight decay is told from training."""

import pytest
import torch

from indextts_job.legacy.base_rows import judge
from indextts_job.legacy.discovery import old_checkpoints

NAMES = ("text_embedding.weight", "text_head.weight", "text_head.bias")
PIECES, WIDTH = 40, 48


def tables() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    embedding, head = (torch.randn(PIECES + 1, WIDTH, generator=generator) * 0.02 for _ in range(2))
    bias = torch.randn(PIECES + 1, generator=generator) * 0.02
    bias[3] = 0.0
    return dict(zip(NAMES, (embedding, head, bias), strict=True))


def decayed(steps: int, rate: float, decay: float = 0.01) -> dict[str, torch.Tensor]:
    """Through real AdamW steps with gradients of zero, as masked rows get them."""
    moved = {name: torch.nn.Parameter(value.clone()) for name, value in tables().items()}
    optimizer = torch.optim.AdamW(moved.values(), lr=rate, weight_decay=decay)
    for parameter in moved.values():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        optimizer.step()
    return {name: value.detach() for name, value in moved.items()}


@pytest.mark.parametrize(("steps", "rate"), [(6, 2e-5), (4000, 5e-6), (4000, 2e-5), (3000, 1e-3)])
def test_rows_that_adamw_has_only_decayed_are_not_trained(steps: int, rate: float) -> None:
    judged = judge(decayed(steps, rate), tables(), PIECES)
    assert judged.trained == ()
    if steps * rate > 0.01:  # float32 rounds shorter decays away in part
        assert judged.decayed > PIECES / 2
        assert 0 < judged.shrunk_ratio < steps * rate * 0.01 * 4  # rounding to whole last places adds to it


@pytest.mark.parametrize("name", NAMES)
def test_one_trained_row_among_decayed_ones_is_named(name: str) -> None:
    rows = decayed(4000, 2e-5)
    row = rows[name][7]
    # One AdamW step of a trained row moves every element by about the learning rate, up or down.
    step = 2e-5 * torch.sign(torch.randn(row.shape, generator=torch.Generator().manual_seed(5)) + (row.dim() == 0))
    rows[name][7] = row + 40 * torch.where(row == 0, step, step * torch.sign(row) if row.dim() == 0 else step)
    judged = judge(rows, tables(), PIECES)
    assert judged.trained == (f"{name}, row 7",)


def test_equal_rows_are_neither_and_a_row_of_zeros_that_moved_is_trained() -> None:
    assert judge(tables(), tables(), PIECES) == judge(tables(), tables(), PIECES)
    assert judge(tables(), tables(), PIECES).decayed == 0
    rows = tables()
    rows["text_head.bias"][3] = 1e-6
    assert judge(rows, tables(), PIECES).trained == ("text_head.bias, row 3",)


def test_rows_behind_the_base_pieces_do_not_count() -> None:
    rows = tables()
    rows["text_head.weight"][PIECES] = 1.0
    assert judge(rows, tables(), PIECES).trained == ()


def test_the_old_trainers_own_choice_comes_first_then_the_highest_step() -> None:
    names = ["model_step9.pth", "model_step10.pth", "latest.pth", "full_training_checkpoint_step_300.pt", "gpt.pth"]
    names += ["latest_old.pth", "model_epoch2_step40.pth", "full_training_best_model.pt", "summary.json"]
    assert old_checkpoints(names) == [
        "latest.pth",
        "full_training_checkpoint_step_300.pt",
        "model_epoch2_step40.pth",
        "model_step10.pth",
        "model_step9.pth",
    ]
    assert old_checkpoints(["gpt.pth", "bigvgan.pt"]) == []
