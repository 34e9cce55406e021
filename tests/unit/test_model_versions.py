"""Both versions of the model, from one class, equal the published modules: losses, and the gradient of every tensor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from indextts_job.data.array_files import spoken_ids
from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import GPTConfig, carried_shapes, trained_shapes
from indextts_job.model.unified_voice import LossSums, UnifiedVoice
from indextts_job.model.versions import V2_5
from indextts_job.training.engine import to_device
from tests.support.models import SMALL, SMALL_2_5, golden_model, golden_sample

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/model-values.json").read_text())
TOLERANCE = 1e-10
CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("config", [SMALL, SMALL_2_5], ids=["2.0", "2.5"])


def golden(config: GPTConfig) -> dict[str, Any]:
    values: dict[str, Any] = GOLDEN[config.version.name]
    return values


def samples(config: GPTConfig) -> list[Sample]:
    return [golden_sample(5, 9, 0, config), golden_sample(8, 14, 1, config)]


def losses(model: UnifiedVoice, of: list[Sample], config: GPTConfig) -> tuple[Tensor, Tensor]:
    batch = collate(of, config)
    sums: LossSums = model(to_device(batch, CPU, torch.float64))
    return sums.text / len(batch.text_targets), sums.mel / len(batch.code_targets)


@BOTH
def test_losses_are_the_golden_ones(config: GPTConfig) -> None:
    model, (a, b) = golden_model(config), samples(config)
    for name, of in (("A", [a]), ("B", [b]), ("AB", [a, b])):
        text, mel = losses(model, of, config)
        expected = golden(config)[name]
        assert text.item() == pytest.approx(expected[0], rel=TOLERANCE)
        assert mel.item() == pytest.approx(expected[1], rel=TOLERANCE)


@BOTH
def test_the_gradient_of_every_tensor_is_the_golden_one(config: GPTConfig) -> None:
    model = golden_model(config)
    text, mel = losses(model, samples(config), config)
    (0.2 * text + 0.8 * mel).backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    assert norms == pytest.approx(golden(config)["gradient_norms"], rel=TOLERANCE, abs=1e-14)
    assert len(norms) == golden(config)["tensors"]


def test_only_the_languages_in_use_get_a_gradient() -> None:
    model = golden_model(SMALL_2_5)
    text, mel = losses(model, samples(SMALL_2_5), SMALL_2_5)
    (0.2 * text + 0.8 * mel).backward()
    gradient = dict(model.named_parameters())["lang_embedding.weight"].grad
    assert gradient is not None
    rows = {row: gradient[row].norm().item() for row in gradient.abs().sum(1).nonzero().flatten().tolist()}
    expected = {int(row): norm for row, norm in golden(SMALL_2_5)["language_rows_with_gradient"].items()}
    assert rows == pytest.approx(expected, rel=TOLERANCE)


def test_another_language_is_another_loss() -> None:
    sample = replace(samples(SMALL_2_5)[0], language_row=75)
    text, mel = losses(golden_model(SMALL_2_5), [sample], SMALL_2_5)
    expected = golden(SMALL_2_5)["A_as_language_75"]
    assert (text.item(), mel.item()) == pytest.approx(tuple(expected), rel=TOLERANCE)


def test_ids_0_and_1_inside_a_text_change_no_bit() -> None:
    model, (plain, _) = golden_model(SMALL_2_5), samples(SMALL_2_5)
    inside = np.array([0, *plain.text_ids[:2], 1, *plain.text_ids[2:], 0], np.int32)
    cleaned = replace(plain, text_ids=spoken_ids(inside, V2_5))
    assert all(map(torch.equal, losses(model, [cleaned], SMALL_2_5), losses(model, [plain], SMALL_2_5)))


@BOTH
def test_parameters_are_the_trained_tensors(config: GPTConfig) -> None:
    shapes = {name: tuple(value.shape) for name, value in golden_model(config).state_dict().items()}
    assert shapes == trained_shapes(config, 51)


def test_the_released_sizes_of_2_5() -> None:
    """Counted with the published module at full size."""
    encoder = replace(SMALL.emo_condition_module, output_size=512, linear_units=1024, attention_heads=4, num_blocks=4)
    released = replace(
        SMALL_2_5,
        model_dim=1280,
        layers=24,
        heads=20,
        max_text_tokens=600,
        max_mel_tokens=1815,
        number_text_tokens=60509,
        number_mel_codes=8194,
        start_mel_token=8192,
        stop_mel_token=8193,
        condition_module=None,
        emo_condition_module=encoder,
    )
    trained, carried = trained_shapes(released, 60510), carried_shapes(released)
    assert len(trained) == 303
    assert sum(int(np.prod(shape)) for shape in trained.values()) == 651_696_224
    assert len(trained) + len(carried) == 456
    assert trained["lang_embedding.weight"] == (107, 1280)
    assert trained["spk_emb_proj.weight"] == (1280, 192)
    never = {key: shape for key, shape in carried.items() if not key.endswith("pos_enc.pe")}
    assert len(never) == 152
    assert sum(int(np.prod(shape)) for shape in never.values()) == 160_593_236
