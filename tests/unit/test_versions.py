"""The version of a model is told by its checkpoint, and by nothing that a file says about itself."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts_job.errors import ConfigError, DataError
from indextts_job.model.base_checkpoint import as_base
from indextts_job.model.config import carried_shapes, gpt_config, of_version, trained_shapes
from indextts_job.model.languages import CODES, NAMES, TRAINED, language_of, row_of
from indextts_job.model.versions import (
    TEXT_TOKENS_2_5,
    V2_0,
    V2_5,
    ModelVersion,
    corrected,
    version_of_checkpoint,
    version_of_config,
)

ENCODER = {"output_size": 8, "linear_units": 16, "attention_heads": 1, "num_blocks": 1}
GPT = {
    **{"model_dim": 16, "layers": 1, "heads": 2, "max_text_tokens": 20, "max_mel_tokens": 30, "number_text_tokens": 12},
    **{"number_mel_codes": 10, "start_mel_token": 8, "stop_mel_token": 9, "start_text_token": 0, "stop_text_token": 1},
    **{"condition_type": "conformer_perceiver", "condition_module": ENCODER, "emo_condition_module": ENCODER},
}
DOCUMENT: dict[str, Any] = {"gpt": GPT, "dataset": {"bpe_model": "bpe.model"}, "version": 2.0}


def state(version: ModelVersion) -> dict[str, Tensor]:
    config = of_version(gpt_config(DOCUMENT, "config.yaml"), version, "config.yaml")
    return {key: torch.zeros(shape) for key, shape in (trained_shapes(config, 13) | carried_shapes(config)).items()}


@pytest.mark.parametrize(
    ("change", "version"),
    [
        ({}, V2_0),
        ({"version": 2.5}, V2_5),
        ({"version": "2.5"}, V2_5),
        ({"version": None}, V2_0),
        ({"dataset": {"tokenizer_type": "tiktoken"}}, V2_5),
        ({"dataset": {"bpe_model": "multilingual_zh_ja_yue_char_del.tiktoken"}}, V2_5),
        ({"gpt": {**GPT, "number_text_tokens": TEXT_TOKENS_2_5}}, V2_5),
        ({"dataset": None}, V2_0),
    ],
)
def test_any_sign_in_a_config_tells_2_5(change: dict[str, Any], version: ModelVersion) -> None:
    assert version_of_config({**DOCUMENT, **change}) == version


@pytest.mark.parametrize("version", [V2_0, V2_5], ids=str)
@pytest.mark.parametrize("says", [2.0, 2.5])
def test_the_checkpoint_decides_whatever_the_config_says(version: ModelVersion, says: float) -> None:
    config = gpt_config({**DOCUMENT, "version": says}, "config.yaml")
    base = as_base(state(version), config, "gpt.pth")
    assert base.version == version
    assert base.tensors.keys() == state(version).keys()


@pytest.mark.parametrize("version", [V2_0, V2_5], ids=str)
def test_a_corrected_config_says_the_version_and_keeps_what_it_said(version: ModelVersion) -> None:
    for says in (2.0, 2.5):
        document = {**DOCUMENT, "version": says, "indextts_job": {"languages": ["am"]}}
        told = corrected(document, version)
        assert version_of_config(told) == version
        assert told["version"] == says
        assert told["indextts_job"]["languages"] == ["am"]
    assert corrected(DOCUMENT, V2_0) is DOCUMENT


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["spk_emb_proj.weight", "conditioning_encoder.embed.out.0.bias"], "mixes the keys"),
        (["lang_embedding.weight", "speed_emb.weight"], r"IndexTTS-2\.0: speed_emb\.weight"),
        (["spk_emb_proj.weight", "perceiver_encoder.latents"], r"IndexTTS-2\.5: spk_emb_proj\.weight"),
        (["text_head.weight"], "no gpt.pth of IndexTTS"),
        (["emo_perceiver_encoder.latents", "emo_conditioning_encoder.x"], "no gpt.pth of IndexTTS"),
    ],
)
def test_mixtures_are_refused_by_file_and_key(keys: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        version_of_checkpoint(keys, "some/gpt.pth")
    assert "some/gpt.pth" in str(refused.value)


def without(*keys: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("lang_embedding.weight"), r"lang_embedding\.weight: missing, expected \[107, 16\]"),
        (without("spk_emb_proj.bias"), r"spk_emb_proj\.bias: missing"),
        (without("emo_conditioning_encoder.embed.pos_enc.pe"), r"pos_enc\.pe: missing"),
        (lambda s: {**s, "speed_emb.weight": torch.zeros(2, 16)}, "mixes the keys of several model versions"),
        (lambda s: {**s, "lang_embedding.weight": torch.zeros(106, 16)}, r"shape \[106, 16\], expected \[107, 16\]"),
    ],
)
def test_a_checkpoint_of_2_5_has_exactly_its_keys(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    config = gpt_config(DOCUMENT, "config.yaml")
    with pytest.raises(DataError, match=words):
        as_base(change(state(V2_5)), config, "gpt.pth")


def test_what_a_config_lacks_for_the_version_of_its_checkpoint_is_named() -> None:
    gpt = {key: value for key, value in GPT.items() if key != "condition_module"}
    config = gpt_config({**DOCUMENT, "gpt": gpt, "version": 2.5}, "config.yaml")
    with pytest.raises(ConfigError, match="condition_module is missing"):
        as_base(state(V2_0), config, "gpt.pth")


def test_a_model_as_wide_as_a_speaker_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match="the width of a speaker vector"):
        gpt_config({**DOCUMENT, "version": 2.5, "gpt": {**GPT, "model_dim": 192}}, "config.yaml")


def test_languages_are_those_of_the_release() -> None:
    assert len(NAMES) == 106
    rows = {"en": 0, "zh": 1, "es": 3, "ja": 7, "tr": 9, "ar": 13, "am": 75, "yue": 99, "dialect": 102, "common": 105}
    assert {code: row_of(code) for code in rows} == rows
    assert language_of("am").token(58838) == 58913
    assert {row_of(code) for code in CODES} == set(range(106))


@pytest.mark.parametrize(
    ("label", "name", "slot"),
    [
        ("am", "am", "am"),
        (" AM ", "am", "am"),
        ("Amharic", "am", "am"),
        ("mandarin", "zh", "zh"),
        ("az:tt", "az", "tt"),
        ("qaa : Tatar", "qaa", "tt"),
        ("en:en", "en", "en"),
        ("yue:tt", "yue", "tt"),
    ],
)
def test_labels(label: str, name: str, slot: str) -> None:
    language = language_of(label)
    assert (language.name, language.slot) == (name, slot)
    assert language_of(str(language)) == language


@pytest.mark.parametrize("label", ["xx", "yue", "zhen", "common", "en/zh", "minnan", "", ":tt", "az:yue", "am_ET"])
def test_no_label_leads_to_the_row_of_unknown_languages(label: str) -> None:
    with pytest.raises(ValueError, match=r"no language|has no token"):
        language_of(label)


@pytest.mark.parametrize("slot", TRAINED)
def test_nobody_borrows_the_slot_of_a_language_that_the_model_speaks(slot: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"borrows the slot of '{slot}'")):
        language_of(f"qaa:{slot}")
