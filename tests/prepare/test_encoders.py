"""Every encoder gives what the published classes give: `tests/golden/encoders.npz`.

The file was made outside of the repository: the classes of index-tts at ee40fa7 and the sources of torchaudio 2.11
(resampler, filter bank), in float64, with weights and inputs of `tests/support/patterned.py`, one clip at a time.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from indextts_job.model.config import ConformerConfig
from indextts_job.prepare.encoders.campplus import CamPPlus
from indextts_job.prepare.encoders.codec import CodecEncoder, CodecSizes
from indextts_job.prepare.encoders.conformer import Conformer, Perceiver
from indextts_job.prepare.encoders.filter_bank import filter_bank
from indextts_job.prepare.resample import resampled
from tests.support.patterned import signal, uniform, weights

GOLDEN = np.load(Path(__file__).parents[1] / "golden/encoders.npz", allow_pickle=False)
FEW_ULPS = 1e-12
"""Of float64 values near 1, through the depth of these networks."""
SIZES = {"hidden": 24, "width": 16, "inner": 20, "layers": 3, "codes": 64, "code_width": 8}
CONDITION = ConformerConfig(output_size=16, linear_units=24, attention_heads=2, num_blocks=2, perceiver_mult=2)
EMOTION = ConformerConfig(output_size=16, linear_units=24, attention_heads=4, num_blocks=1, perceiver_mult=1)
DECODER_SHAPES = {
    "quantizer.quantizers.0.out_project.bias": (24,),
    "quantizer.quantizers.0.out_project.weight_g": (24, 1, 1),
    "quantizer.quantizers.0.out_project.weight_v": (24, 8, 1),
}


def filled(module: nn.Module, more: dict[str, tuple[int, ...]] | None = None) -> nn.Module:
    """A module in float64 with the weights of the golden values.

    Args:
        module: The module.
        more: Shapes of tensors that only the published class has, which count among the sorted names.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if tensor.dtype.is_floating_point}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    values = weights({**shapes, **(more or {})})
    module.double().load_state_dict({name: torch.from_numpy(values[name]) for name in state}, strict=False)
    return module.eval()


def decoder_shapes(*, halves_rate: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the published codec's other half."""
    backbone = {name: tuple(t.shape) for name, t in codec(halves_rate=False).encoder.state_dict().items()}
    shapes = {**DECODER_SHAPES, **{f"decoder.{name}": shape for name, shape in backbone.items()}}
    return {**shapes, **({"up.weight": (24, 24, 3), "up.bias": (24,)} if halves_rate else {})}


def codec(*, halves_rate: bool) -> CodecEncoder:
    return CodecEncoder(CodecSizes(halves_rate=halves_rate, **SIZES))


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 44100, 48000])
def test_resampled_audio_is_that_of_inference(rate: int) -> None:
    found = resampled(signal(1, 1500, rate), rate, 16_000)
    np.testing.assert_allclose(found, GOLDEN[f"resample_{rate}"], atol=FEW_ULPS, rtol=0)


def test_the_filter_bank_is_kaldis() -> None:
    ours = filter_bank(torch.from_numpy(signal(2, 16_000))).numpy()
    np.testing.assert_allclose(ours[::7], GOLDEN["filter_bank"], atol=FEW_ULPS, rtol=0)


@pytest.mark.parametrize(("name", "halves_rate"), [("codec_2_0", False), ("codec_2_5", True)])
@torch.no_grad()
def test_codes_are_those_of_the_published_codec(name: str, halves_rate: bool) -> None:
    hidden = torch.from_numpy(uniform(900, (1, 61, 24)))
    module = filled(codec(halves_rate=halves_rate), decoder_shapes(halves_rate=halves_rate))
    codes = module(hidden)[0].numpy()
    np.testing.assert_array_equal(codes, GOLDEN[name])
    assert len(set(codes.tolist())) > 10
    np.testing.assert_array_equal(module.float()(hidden.float())[0].numpy(), GOLDEN[name])


@pytest.mark.parametrize(
    ("name", "config", "latents", "width", "step"),
    [("condition", CONDITION, 32, 48, 1), ("emotion", EMOTION, 1, 1024, 16)],
)
@torch.no_grad()
def test_conditioning_encoders_are_those_of_the_checkpoint(
    name: str, config: ConformerConfig, latents: int, width: int, step: int
) -> None:
    both = nn.Module()
    both.conformer, both.perceiver = Conformer(config), Perceiver(config, latents, width)
    filled(both)
    rows = both.conformer(torch.from_numpy(uniform(901, (1, 41, 1024))))
    np.testing.assert_allclose(rows[0].numpy(), GOLDEN[f"{name}_rows"], atol=FEW_ULPS)
    np.testing.assert_allclose(both.perceiver(rows)[0].numpy()[:, ::step], GOLDEN[name], atol=FEW_ULPS)


@torch.no_grad()
def test_speaker_vectors_are_campplus() -> None:
    module = filled(CamPPlus())
    energies = torch.from_numpy(uniform(902, (137, 80)))
    vector = module.xvector(module.head(energies.T[None]))[0]  # type: ignore[operator]
    np.testing.assert_allclose(vector.numpy(), GOLDEN["campplus_of_energies"], atol=FEW_ULPS)
    of_samples = module(torch.from_numpy(signal(3, 2 * 16_000 + 77))).numpy()
    np.testing.assert_allclose(of_samples, GOLDEN["campplus"], atol=FEW_ULPS)
    # Another clip has another vector, by more than the tolerance.
    assert np.abs(module(torch.from_numpy(signal(4, 2 * 16_000 + 77))).numpy() - GOLDEN["campplus"]).max() > 1e-6
