"""I3: the update of a step does not depend on how its samples are cut; nothing non-finite reaches the weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from indextts_job.errors import NonFiniteError
from indextts_job.model.batch import PackedBatch
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import RowFactors, build_optimizer
from indextts_job.training.step import Discarded, Updated, train_step
from tests.support.models import engine, micro_batches, random_samples, small_model

SAMPLES = random_samples(11)
WHOLE = 10_000


def updated_weights(model: UnifiedVoice, batches: list[PackedBatch]) -> torch.Tensor:
    assert isinstance(train_step(engine(model), batches, 0, 1e-3), Updated)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_cut_gives_the_same_bits_with_dropout() -> None:
    batches = micro_batches(SAMPLES, 222)

    def weights() -> torch.Tensor:
        model = small_model(dropout=0.1)
        parts = engine(model, dropout=0.1)
        for step in range(3):
            train_step(parts, batches, step, 1e-3)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(), weights())


def test_dropout_is_a_function_of_the_step() -> None:
    batches = micro_batches(SAMPLES, WHOLE)

    def loss(step: int) -> float:
        outcome = train_step(engine(small_model(dropout=0.1), dropout=0.1), batches, step, 0.0)
        assert isinstance(outcome, Updated)
        return outcome.losses.total

    torch.manual_seed(1)
    first = loss(5)
    torch.manual_seed(2)
    assert loss(5) == first
    assert loss(6) != first


def test_a_discarded_cycle_leaves_no_trace() -> None:
    batches = micro_batches(SAMPLES, 222)
    model = small_model()
    parts = engine(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = train_step(parts, batches, 0, 1e-3, discard=lambda left: left == 1)
    assert outcome == Discarded(len(batches) - 1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(not moments["exp_avg"].any() for moments in parts.optimizer.state.values())
    assert all(p.grad is None for p in model.parameters())
    again = updated_weights(model, batches)
    assert torch.equal(again, updated_weights(small_model(), batches))


def poisoned(batch: PackedBatch) -> PackedBatch:
    batch.condition[0, 0, 0] = np.nan
    return batch


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_non_finite_loss_names_the_samples_and_spares_the_weights(precision: str) -> None:
    batches = micro_batches(random_samples(11), 222)
    poisoned(batches[1])
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(NonFiniteError) as caught:
        train_step(engine(model, precision=precision), batches, 17, 1e-3)
    message = str(caught.value)
    assert "step 17" in message
    assert all(name in message for name in batches[1].sample_ids)
    assert not any(f"{name}," in message for name in batches[0].sample_ids)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_non_finite_gradient_is_an_error_too() -> None:
    model = small_model()
    model.speed_emb.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        train_step(engine(model), micro_batches(SAMPLES, WHOLE), 3, 1e-3)


def test_an_overflow_of_float16_repeats_the_step_with_a_smaller_scale() -> None:
    parts = engine(small_model(), precision="float16")
    parts.scaler.load_state_dict({**parts.scaler.state_dict(), "scale": 2.0**40})
    outcome = train_step(parts, micro_batches(SAMPLES, 222), 0, 1e-3)
    assert isinstance(outcome, Updated)
    assert outcome.scaler_skips > 0
    assert parts.scaler.get_scale() == 2.0 ** (40 - outcome.scaler_skips)
    direct = train_step(engine(small_model(), precision="float16"), micro_batches(SAMPLES, 222), 0, 1e-3)
    assert isinstance(direct, Updated)
    assert outcome.losses == direct.losses


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(precision: str) -> None:
    batches = micro_batches(SAMPLES, 222)
    half = train_step(engine(small_model(), precision=precision), batches, 0, 1e-3)
    full = train_step(engine(small_model()), batches, 0, 1e-3)
    assert isinstance(half, Updated)
    assert isinstance(full, Updated)
    # 8 bits of mantissa, averaged over some 300 targets.
    assert half.losses.total == pytest.approx(full.losses.total, rel=4e-3)
    assert half.grad_norm == pytest.approx(full.grad_norm, rel=4e-2)


def test_only_matrices_of_the_transformer_decay() -> None:
    parts = engine(small_model())
    names = {id(p): name for name, p in parts.model.named_parameters()}
    groups = {group["weight_decay"]: group["params"] for group in parts.optimizer.param_groups}
    decayed = {names[id(p)] for p in groups[0.01]}
    assert decayed == {
        f"gpt.h.{i}.{part}.weight"
        for i in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_rows_that_the_data_does_not_touch_keep_their_bits() -> None:
    model = small_model()
    before = model.mel_embedding.weight[33].detach().clone()
    parts = engine(model)
    for step in range(3):
        train_step(parts, micro_batches(SAMPLES, WHOLE), step, 1e-2)
    assert torch.equal(model.mel_embedding.weight[33], before)


def test_new_rows_learn_at_their_own_multiple_of_the_rate_and_all_else_at_the_rate() -> None:
    """The first AdamW update moves every element by the rate, up or down: m / sqrt(v) is the sign of its gradient."""
    factor, rate = 4.0, 1e-3
    model = small_model(base_pieces=30)
    parts = replace(
        engine(model),
        optimizer=build_optimizer(model, OptimizerConfig(weight_decay=0.0), None, RowFactors(pieces=factor)),
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert isinstance(train_step(parts, micro_batches(SAMPLES, WHOLE), 0, rate), Updated)
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(rate * (factor if name.endswith("_new") else 1.0), rel=0.02), name
