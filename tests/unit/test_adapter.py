"""Low-rank adapters: golden losses and gradients, the base path when they are off, and what stays constant."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts_job.model.adapter import Adapter, disabled, initial_factor, merged
from indextts_job.model.adapter_config import PROJECTIONS, AdapterConfig
from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.model.unified_voice import LossSums, UnifiedVoice
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.training.engine import to_device
from tests.support.models import LANGUAGES, SMALL, SMALL_2_5, golden_model, golden_sample

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/model-values.json").read_text())["2.5"]["lora"]
CPU = torch.device("cpu")
CONFIG = AdapterConfig(rank=4, alpha=8)
BOTH = pytest.mark.parametrize("config", [SMALL, SMALL_2_5], ids=["2.0", "2.5"])


def adapted(config: GPTConfig, adapter: AdapterConfig = CONFIG) -> UnifiedVoice:
    """The golden model with the golden factors."""
    rows = (LANGUAGES[1],) if config.version.language_rows else ()
    model = UnifiedVoice(config, Vocabulary(50, 50), 0.0, Adapter(adapter, rows)).double()
    state = golden_model(config).state_dict()
    names = sorted(name.removesuffix(".lora_A") for name in model.state_dict() if name.endswith(".lora_A"))
    for k, name in enumerate(names):
        for suffix, step, shift in (("lora_A", 0.9, 0.5 * k), ("lora_B", 1.1, 0.3 * k + 0.2)):
            shape = model.state_dict()[f"{name}.{suffix}"].shape
            index = torch.arange(shape.numel(), dtype=torch.float64)
            state[f"{name}.{suffix}"] = (0.05 * torch.sin(step * index + shift)).reshape(shape)
    if rows:
        state["lang_embedding.weight_rows"] = state["lang_embedding.weight"][list(rows)]
    model.load_state_dict(state)
    return model


def samples(config: GPTConfig) -> list[Sample]:
    return [golden_sample(5, 9, 0, config), golden_sample(8, 14, 1, config)]


def losses(model: UnifiedVoice, config: GPTConfig, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    batch = collate(samples(config), config)
    sums: LossSums = model(to_device(batch, CPU, dtype))
    return sums.text / len(batch.text_targets), sums.mel / len(batch.code_targets)


def test_losses_and_gradients_are_the_golden_ones() -> None:
    model = adapted(SMALL_2_5)
    text, mel = losses(model, SMALL_2_5)
    total = 0.2 * text + 0.8 * mel
    assert [text.item(), mel.item(), total.item()] == pytest.approx(GOLDEN["AB"], rel=1e-10)
    total.backward()
    gradients = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    for name, (of_a, of_b) in GOLDEN["norms"].items():
        assert gradients.pop(f"{name}.lora_A") == pytest.approx(of_a, rel=1e-10)
        assert gradients.pop(f"{name}.lora_B") == pytest.approx(of_b, rel=1e-10)
    row = gradients.pop("lang_embedding.weight_rows")
    whole = torch.tensor([GOLDEN["norm_of_A"], GOLDEN["norm_of_B"], row], dtype=torch.float64).norm()
    assert whole.item() == pytest.approx(GOLDEN["norm_A_B_and_language_row_78"], rel=1e-10)
    assert not gradients


@BOTH
def test_without_the_adapter_it_is_the_base_bit_for_bit(config: GPTConfig) -> None:
    expected = losses(golden_model(config), config)
    model = adapted(config)
    with disabled(model):
        assert all(map(torch.equal, losses(model, config), expected))
    assert not any(map(torch.equal, losses(model, config), expected))
    assert all(map(torch.equal, losses(adapted(config, AdapterConfig(rank=4, alpha=0)), config), expected))


@BOTH
def test_a_fresh_adapter_is_the_base(config: GPTConfig) -> None:
    model = adapted(config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(initial_factor(name, parameter.shape, 7))
    found, expected = losses(model, config), losses(golden_model(config), config)
    assert [value.item() for value in found] == [value.item() for value in expected]


@BOTH
def test_merged_weights_compute_what_the_adapter_computes(config: GPTConfig) -> None:
    model, plain = adapted(config), golden_model(config)
    state = plain.state_dict()
    for name in list(state):
        factors = (name.replace("weight", "lora_A"), name.replace("weight", "lora_B"))
        if factors[0] in model.state_dict() and factors[0] != name:
            a, b = (model.state_dict()[factor] for factor in factors)
            state[name] = merged(state[name], a, b, CONFIG.scale)
    plain.load_state_dict(state)
    for found, expected in zip(losses(plain, config), losses(model, config), strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_only_factors_and_rows_are_parameters() -> None:
    names = {name for name, _ in adapted(SMALL_2_5).named_parameters()}
    factors = {
        f"gpt.h.{i}.{where}.{factor}" for i in range(2) for where in PROJECTIONS for factor in ("lora_A", "lora_B")
    }
    assert names == {*factors, "lang_embedding.weight_rows"}


def test_the_last_blocks_and_some_targets() -> None:
    model = adapted(SMALL, AdapterConfig(rank=2, targets=("mlp.c_proj",), last_blocks=1))
    assert {name for name, _ in model.named_parameters()} == {"gpt.h.1.mlp.c_proj.lora_A", "gpt.h.1.mlp.c_proj.lora_B"}


def test_factors_start_by_name_and_seed() -> None:
    shape = torch.Size([4, 64])
    one = initial_factor("gpt.h.0.attn.c_attn.lora_A", shape, 1)
    assert torch.equal(one, initial_factor("gpt.h.0.attn.c_attn.lora_A", shape, 1))
    assert not torch.equal(one, initial_factor("gpt.h.1.attn.c_attn.lora_A", shape, 1))
    assert not torch.equal(one, initial_factor("gpt.h.0.attn.c_attn.lora_A", shape, 2))
    assert one.abs().max() <= 1 / 8
    assert one.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_in_bfloat16_a_block_computes_the_same_with_a_base_of_either_type() -> None:
    x = torch.randn(7, SMALL.model_dim, generator=torch.Generator().manual_seed(1))
    found = []
    for base_dtype in ("float32", "bfloat16"):
        config = replace(CONFIG, base_dtype=base_dtype)
        model = UnifiedVoice(SMALL, Vocabulary(50, 50), 0.0, Adapter(config))
        model.load_state_dict(adapted(SMALL).float().state_dict())
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model.get_submodule("gpt.h.0.mlp")(x))
    assert torch.equal(*found)
    assert model.state_dict()["gpt.h.0.mlp.c_fc.weight"].dtype == torch.bfloat16
