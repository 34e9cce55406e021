"""Folders with an adapter alone: what others write is read, and what would compute something else is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from indextts_job.errors import ConfigError, DataError
from indextts_job.model.adapter_config import SIZES
from indextts_job.model.peft_folder import AdapterFolder, adapter_files, read_adapter_folder
from tests.support.models import SMALL_2_5

RANK, ROW = 3, 75
WIDTH = SMALL_2_5.model_dim
# What peft 0.17.1 writes for LoraConfig(r, lora_alpha, target_modules) besides what it is told.
DEFAULTS: dict[str, Any] = {
    "auto_mapping": None,
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "qalora_group_size": 16,
    "rank_pattern": {},
    "alpha_pattern": {},
    "revision": None,
    "target_parameters": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def folder(path: Path, fields: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None) -> str:
    """A good folder with other fields and tensors; a tensor of None is left out."""
    sizes = {f"gpt.h.0.{name}": (into * WIDTH, out * WIDTH) for name, (into, out) in SIZES.items()}
    factors = {f"{name}.lora_A": torch.ones(RANK, into) for name, (into, _) in sizes.items()}
    factors |= {f"{name}.lora_B": torch.ones(out, RANK) for name, (_, out) in sizes.items()}
    files = adapter_files(AdapterFolder(RANK, 6.0, factors, {ROW: torch.ones(WIDTH)}), "IndexTTS-2.5")
    config = json.loads(files["adapter_config.json"]) | DEFAULTS | (fields or {})
    content = safetensors.torch.load(files["adapter_model.safetensors"]) | (tensors or {})
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(safetensors.torch.save(content))
    return str(path)


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    found = read_adapter_folder(folder(tmp_path), SMALL_2_5)
    assert (found.rank, found.alpha, set(found.language_rows)) == (RANK, 6.0, {ROW})
    assert len(found.factors) == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": ["pissa"]},
        {"use_dora": True},
        {"use_rslora": True},
        {"use_qalora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"rank_pattern": {"c_attn": 8}},
        {"alpha_pattern": {"c_attn": 8}},
        {"modules_to_save": ["mel_head"]},
        {"layers_to_transform": [1]},
        {"a_field_of_tomorrow": 10**4000},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_would_compute_something_else_is_refused_by_name(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        read_adapter_folder(folder(tmp_path, fields), SMALL_2_5)


@pytest.mark.parametrize("fields", [{"init_lora_weights": "gaussian"}, {"bias": None}, {"init_lora_weights": False}])
def test_what_says_nothing_about_the_result_is_read(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert read_adapter_folder(folder(tmp_path, fields), SMALL_2_5).rank == RANK


@pytest.mark.parametrize("alpha", [math.nan, math.inf, 1e308, 10**400, 0, -1, True, "6", None])
def test_an_alpha_that_is_no_number_of_use_is_refused(tmp_path: Path, alpha: object) -> None:
    with pytest.raises(DataError, match="lora_alpha is"):
        read_adapter_folder(folder(tmp_path, {"lora_alpha": alpha}), SMALL_2_5)


A = "base_model.model.gpt.h.0.attn.c_attn.lora_A"
ROWS = "base_model.model.lang_embedding.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (ROWS, torch.full((1, WIDTH), math.nan), "NaN or infinity"),
        (ROWS, torch.ones(1, WIDTH, dtype=torch.int64), "of torch.int64, expected"),
        (ROWS, torch.ones(1, WIDTH, dtype=torch.complex64), "of torch.complex64, expected"),
        (ROWS, torch.ones(2, WIDTH), r"for the rows \[75\]"),
        (f"{A}.weight", torch.full((RANK, WIDTH), math.inf), "NaN or infinity"),
        (f"{A}.weight", torch.ones(RANK, WIDTH).to(torch.float8_e4m3fn), "of torch.float8_e4m3fn, expected"),
        (f"{A}.default.weight", torch.zeros(RANK, WIDTH), "stands there twice"),
        (f"{A}.weight".replace("h.0", "h.00"), torch.ones(RANK, WIDTH), "unknown tensor"),
        (f"{A}.weight".replace("h.0", "h.\N{ARABIC-INDIC DIGIT ZERO}"), torch.ones(RANK, WIDTH), "unknown tensor"),
        (f"{A}.weight".replace("h.0", "h." + "9" * 5000), torch.ones(RANK, WIDTH), "unknown tensor"),
        (f"{A}.weight".replace("h.0", "h.9"), torch.ones(RANK, WIDTH), "the model has 2 blocks"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, key: str, value: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_adapter_folder(folder(tmp_path, tensors={key: value}), SMALL_2_5)
