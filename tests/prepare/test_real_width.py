"""Every key and shape at the width of the release, without memory for a single weight."""

import pytest
import torch
from torch import nn

from indextts_job.demo.tiny_encoders import LAYERS
from indextts_job.model.config import ConformerConfig, GPTConfig, carried_shapes
from indextts_job.model.versions import V2_0, V2_5
from indextts_job.prepare.encoders.campplus import CamPPlus
from indextts_job.prepare.encoders.codec import CodecEncoder, CodecSizes, codec_sizes
from indextts_job.prepare.encoders.voice import ConditioningEncoders
from tests.support.models import SMALL

CONDITION = ConformerConfig(output_size=512, linear_units=2048, attention_heads=8, num_blocks=6, perceiver_mult=2)
EMOTION = ConformerConfig(output_size=512, linear_units=1024, attention_heads=4, num_blocks=4, perceiver_mult=2)


def real(version: str) -> GPTConfig:
    from dataclasses import replace

    chosen = V2_0 if version == "2.0" else V2_5
    return replace(
        SMALL, model_dim=1280, heads=20, condition_module=CONDITION, emo_condition_module=EMOTION, version=chosen
    )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_conditioning_encoders_have_the_keys_and_shapes_of_the_checkpoint(version: str) -> None:
    config = real(version)
    with torch.device("meta"):
        module = ConditioningEncoders(config)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == carried_shapes(config)


def test_parameters_of_the_conditioning_encoders_are_those_that_were_counted() -> None:
    with torch.device("meta"):
        module = ConditioningEncoders(real("2.0"))
    # model-2.5: `emo_conditioning_encoder.` 146,622,976 and `emo_perceiver_encoder.` 11,018,580 parameters.
    assert parameters(module.emo_conditioning_encoder) == 146_622_976
    assert parameters(module.emo_perceiver_encoder) == 11_018_580
    assert parameters(module.emovec_layer) + parameters(module.emo_layer) == 1_312_000 + 1_639_680
    assert round(parameters(module.conditioning_encoder) / 1e6, 1) == 159.3
    assert round(parameters(module.perceiver_encoder) / 1e6, 1) == 19.1


@pytest.mark.parametrize(("halves_rate", "released"), [(False, 44.3), (True, 50.6)])
def test_codecs_have_their_sizes(halves_rate: bool, released: float) -> None:
    sizes = CodecSizes(hidden=1024, width=384, inner=2048, layers=12, codes=8192, code_width=8, halves_rate=halves_rate)
    with torch.device("meta"):
        codec = CodecEncoder(sizes)
    assert round(parameters(codec.encoder) / 1e6, 1) == 22.1
    # The release has a decoder like the encoder, the way back from the codes, and a second convolution of 2.5.
    decoding = parameters(codec.encoder) + 8 * 1024 + 2 * 1024 + (3 * 1024 * 1024 + 1024) * halves_rate
    assert round((parameters(codec) + decoding) / 1e6, 1) == released
    shapes = {key: tuple(value.shape) for key, value in codec.state_dict().items()}
    assert codec_sizes(shapes) == sizes
    assert shapes["quantizer.quantizers.0.in_project.weight_v"] == (8, 1024, 1)


def test_campplus_has_its_size() -> None:
    with torch.device("meta"):
        network = CamPPlus()
    assert round(parameters(network) / 1e6, 2) == 6.85
    keys = network.state_dict()
    assert keys["xvector.dense.linear.weight"].shape == (192, 1024, 1)
    assert "xvector.dense.nonlinear.batchnorm.weight" not in keys
    assert keys["xvector.block2.tdnnd24.cam_layer.linear_local.weight"].shape == (32, 128, 3)


def test_w2v_bert_is_loaded_up_to_the_hidden_state_that_inference_reads() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        whole = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig())
        used = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(num_hidden_layers=17, mask_time_prob=0.0))
    assert round(parameters(whole) / 1e6, 1) == 580.5
    assert round(parameters(used) / 1e6, 1) == 411.2
    assert LAYERS < 17


def test_fewer_layers_give_the_bits_of_the_hidden_state() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 16, "mask_time_prob": 0.0}
    torch.manual_seed(0)
    whole = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(num_hidden_layers=3, **sizes)).eval()
    used = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(num_hidden_layers=2, **sizes)).eval()
    used.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if ".layers.2." not in name})
    features, mask = torch.randn(1, 30, 160), torch.ones(1, 30, dtype=torch.int32)
    with torch.no_grad():
        hidden = whole(input_features=features, attention_mask=mask, output_hidden_states=True).hidden_states[2]
        assert torch.equal(used(input_features=features, attention_mask=mask).last_hidden_state, hidden)
