"""The model equals the published one: golden values, and a direct reference that knows no packing."""

import math

import pytest
import torch
from torch import Tensor

from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import trained_shapes
from indextts_job.model.unified_voice import LossSums, UnifiedVoice
from indextts_job.training.engine import to_device
from tests.support.models import SMALL, golden_model, golden_sample, random_samples, small_model

A, B = golden_sample(5, 9, 0), golden_sample(8, 14, 1)
CPU = torch.device("cpu")


def losses(model: UnifiedVoice, samples: list[Sample], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    batch = collate(samples, SMALL)
    sums: LossSums = model(to_device(batch, CPU, dtype))
    return sums.text / len(batch.text_targets), sums.mel / len(batch.code_targets)


@pytest.mark.parametrize(
    ("samples", "text", "mel"),
    [
        ([A], 3.720577189399, 5.351912050975),
        ([B], 4.170975473061, 6.179948325499),
        ([A, B], 3.990816159596, 5.848733815690),
        ([B, A], 3.990816159596, 5.848733815690),
    ],
)
def test_losses_have_the_golden_values(samples: list[Sample], text: float, mel: float) -> None:
    text_loss, mel_loss = losses(golden_model(), samples)
    assert text_loss.item() == pytest.approx(text, rel=1e-9)
    assert mel_loss.item() == pytest.approx(mel, rel=1e-9)


def test_gradients_have_the_golden_norms() -> None:
    model = golden_model()
    text_loss, mel_loss = losses(model, [A, B])
    total = 0.2 * text_loss + 0.8 * mel_loss
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert total.item() == pytest.approx(5.477150284471, rel=1e-9)
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert whole.item() == pytest.approx(30.55184834552, rel=1e-9)
    for name, norm in {
        "gpt.h.0.attn.c_attn.weight": 6.1315284525,
        "gpt.h.1.mlp.c_proj.weight": 0.69944752822,
        "text_embedding.weight": 2.0637441602,
        "mel_head.weight": 1.7703042702,
        "speed_emb.weight": 0.43196448137,
    }.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-9), name
    for name, first, last in (
        ("mel_embedding.weight", 33, 34),
        ("text_embedding.weight", 50, 51),
        ("text_pos_embedding.emb.weight", 10, 22),
        ("mel_pos_embedding.emb.weight", 15, 43),
    ):
        rows = gradients[name].abs().sum(dim=1)
        assert not rows[first:last].any(), name
        assert rows[:first].any(), name


def test_parameters_are_the_published_ones() -> None:
    shapes = {name: tuple(value.shape) for name, value in golden_model().state_dict().items()}
    assert len(shapes) == 37
    assert shapes == trained_shapes(SMALL, 51)


def reference_losses(weights: dict[str, Tensor], sample: Sample) -> tuple[Tensor, Tensor]:
    """One sample, no packing, no fused anything: the formulas of the published model written out."""
    dtype = weights["mel_head.weight"].dtype
    width, heads = SMALL.model_dim, SMALL.heads

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    text = [0, *sample.text_ids.tolist(), 1]
    codes = [SMALL.start_mel_token, *sample.codes.tolist(), SMALL.stop_mel_token]
    latents = torch.tensor(sample.condition, dtype=dtype) + torch.tensor(sample.emotion, dtype=dtype)
    speed = weights["speed_emb.weight"]
    x = torch.cat(
        [
            latents,
            speed[1:2],
            speed[0:1],
            weights["text_embedding.weight"][text] + weights["text_pos_embedding.emb.weight"][: len(text)],
            weights["mel_embedding.weight"][codes] + weights["mel_pos_embedding.emb.weight"][: len(codes)],
        ]
    )
    rows = len(x)
    future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    for layer in range(SMALL.layers):
        block = f"gpt.h.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").view(rows, 3, heads, width // heads)
        query, key, value = (part.transpose(0, 1) for part in qkv.unbind(1))
        scores = query @ key.transpose(1, 2) / math.sqrt(width // heads)
        mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ value
        x = x + linear(mixed.transpose(0, 1).reshape(rows, width), f"{block}.attn.c_proj")
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(gelu, f"{block}.mlp.c_proj")
    x = norm(norm(x, "gpt.ln_f"), "final_norm")
    text_rows, code_rows = x[34 : 34 + len(text)], x[34 + len(text) :]

    def cross_entropy(rows: Tensor, head: str, targets: list[int]) -> Tensor:
        logits = rows @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]
        return -logits.log_softmax(dim=-1)[torch.arange(len(targets)), targets].sum()

    return (
        cross_entropy(text_rows[:-1], "text_head", text[1:]),
        cross_entropy(code_rows[:-1], "mel_head", codes[1:]),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_packed_equals_one_sample_at_a_time(dtype: torch.dtype, tolerance: float) -> None:
    model = small_model().to(dtype)
    samples = random_samples(6)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    expected = [reference_losses(weights, sample) for sample in samples]
    sums: LossSums = model(to_device(collate(samples, SMALL), CPU, dtype))
    assert sums.text.item() == pytest.approx(sum(text.item() for text, _ in expected), rel=tolerance)
    assert sums.mel.item() == pytest.approx(sum(mel.item() for _, mel in expected), rel=tolerance)


def test_a_sample_does_not_see_its_neighbours() -> None:
    model = small_model().double()
    one, other, another = random_samples(3)
    alone = model.hidden_states(to_device(collate([one], SMALL), CPU, torch.float64))
    beside = model.hidden_states(to_device(collate([other, one], SMALL), CPU, torch.float64))
    elsewhere = model.hidden_states(to_device(collate([another, one], SMALL), CPU, torch.float64))
    assert torch.allclose(beside[-len(alone) :], alone, rtol=1e-12, atol=1e-12)
    assert torch.allclose(elsewhere[-len(alone) :], alone, rtol=1e-12, atol=1e-12)
