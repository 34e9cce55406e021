"""A folder with an adapter alone, in the format of the library peft: written for others, read from others.

Two files: `adapter_model.safetensors` with the factors and the rows of languages, `adapter_config.json` with the rest.
A foreign folder is read by name and shape, and nothing in it is executed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from indextts_job.checkpoint.values import AdapterRecord, CheckpointValues
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.adapter import FACTORS, LANGUAGE_ROWS
from indextts_job.model.adapter_config import PROJECTIONS, SIZES, AdapterConfig
from indextts_job.model.config import GPTConfig
from indextts_job.model.languages import CODES
from indextts_job.redaction import redacted
from indextts_job.storage import files

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
LARGEST_BYTES, LARGEST_RANK, LARGEST_ALPHA = 2**32, 1024, 1e6
_PREFIX = "base_model.model."
_ROWS = f"{_PREFIX}lang_embedding.token_adapter.trainable_tokens_delta"
"""peft's name says delta; what it keeps there are the new values of the rows."""
_FACTOR = re.compile(
    rf"{re.escape(_PREFIX)}gpt\.h\.(?P<block>0|[1-9][0-9]{{0,3}})\."
    rf"(?P<projection>{'|'.join(map(re.escape, PROJECTIONS))})"
    r"\.lora_(?P<factor>[AB])(\.default)?\.weight"
)
_KNOWN = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out", "task_type"),
        *("inference_mode", "base_model_name_or_path", "trainable_token_indices", "revision", "auto_mapping"),
        *("init_lora_weights", "peft_version", "megatron_core", "qalora_group_size"),
    )
)
"""Fields that we understand, or that say nothing about what the adapter computes: peft writes all its defaults, among
them those of `megatron_config` and `use_qalora`, which are refused themselves."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights whose factors stand beside the base as it was. The others (pissa, olora, loftq, corda)
change the base when training begins, so that their factors belong to another one."""
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The content of such a folder."""

    rank: int
    alpha: float
    factors: Mapping[str, Tensor]
    """By parameter name: `gpt.h.0.attn.c_attn.lora_A` [rank, in], `….lora_B` [out, rank]."""
    language_rows: Mapping[int, Tensor]
    """Values of rows of the language table."""

    def record(self) -> AdapterRecord:
        """Its shape, as a checkpoint records it."""
        targets = {name.split(".", 3)[3].rpartition(".")[0] for name in self.factors}
        return AdapterRecord(
            rank=self.rank,
            alpha=self.alpha,
            targets=tuple(sorted(targets)),
            last_blocks=0,
            language_rows=tuple(sorted(self.language_rows)),
        )

    def trained(self) -> dict[str, Tensor]:
        """All of it by the names of parameters."""
        rows = [self.language_rows[row] for row in sorted(self.language_rows)]
        stacked = {f"lang_embedding.{LANGUAGE_ROWS}": torch.stack(rows)} if rows else {}
        return {**self.factors, **stacked}

    def languages(self) -> tuple[str, ...]:
        """Codes of its language rows that have one."""
        return tuple(CODES[row] for row in sorted(self.language_rows) if row < len(CODES))


def trained_adapter(trained: Mapping[str, Tensor], values: CheckpointValues) -> AdapterFolder:
    """The adapter that a run has trained.

    Args:
        trained: Trained tensors by parameter name.
        values: What their checkpoint records.

    Raises:
        ConfigError: The run trains without an adapter, or more than such a folder can hold.
    """
    adapter = values.adapter
    if adapter is None:
        raise ConfigError("this run trains all weights, it has no adapter. Leave --adapter-only out.")
    if values.vocabulary.new_rows:
        raise ConfigError(
            f"this run has trained {values.vocabulary.new_rows} new vocabulary rows, for which an adapter's folder has "
            "no place. Leave --adapter-only out: the merged export has them."
        )
    rows = trained.get(f"lang_embedding.{LANGUAGE_ROWS}", ())
    factors = {name: value for name, value in trained.items() if name.endswith(FACTORS)}
    return AdapterFolder(adapter.rank, adapter.alpha, factors, dict(zip(adapter.language_rows, rows, strict=True)))


def adapter_files(folder: AdapterFolder, base_name: str) -> dict[str, bytes]:
    """The two files of an adapter, by name.

    Args:
        folder: The adapter.
        base_name: Name of the base model, for people.
    """
    tensors = {f"{_PREFIX}{name}.weight": value.float().contiguous() for name, value in folder.factors.items()}
    rows = sorted(folder.language_rows)
    if rows:
        tensors[_ROWS] = torch.stack([folder.language_rows[row].float() for row in rows])
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": folder.rank,
        "lora_alpha": folder.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,  # weights lie [in, out] in this model
        "target_modules": list(folder.record().targets),
        "trainable_token_indices": {"lang_embedding": rows} if rows else None,
    }
    return {
        WEIGHTS_FILE: safetensors.torch.save(tensors, {"format": "pt"}),
        CONFIG_FILE: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }


def is_adapter_folder(url: str) -> bool:
    """Whether a folder holds an adapter alone."""
    return files.exists(f"{url.rstrip('/')}/{CONFIG_FILE}")


def read_adapter_folder(url: str, model: GPTConfig) -> AdapterFolder:
    """Read an adapter that this program or peft has written.

    Args:
        url: Path or URL of the folder.
        model: The model that it has to fit.

    Raises:
        ConfigError: There is no such folder, or it uses what is not supported here; names the fields.
        DataError: The files are damaged or do not fit the model; names the tensors.
    """
    shown = redacted(url).rstrip("/")
    config = _config(files.read_input(f"{url.rstrip('/')}/{CONFIG_FILE}", "adapter", "adapter.start"), shown)
    tensors = _tensors(url.rstrip("/"), shown)
    rank = config["r"]
    factors, findings = _factors(tensors)
    findings += _misfits(factors, rank, model)
    rows = _rows(config, tensors, model, findings)
    if findings:
        advice = "Expected an adapter of the blocks of this model, as peft writes it, in safetensors."
        raise DataError(findings_message(f"{shown} does not fit the model", findings, advice))
    return AdapterFolder(rank=rank, alpha=float(config["lora_alpha"]), factors=factors, language_rows=rows)


def _factors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The factors by parameter name, and what is wrong with the names of tensors."""
    keys = sorted(key for key in tensors if _name_of(key))
    factors = {_name_of(key): tensors[key] for key in keys}
    twice = [key for key in keys if tensors[key] is not factors[_name_of(key)]]
    unknown = sorted(tensors.keys() - set(keys) - {_ROWS})
    return factors, [
        *(f"{key}: unknown tensor" for key in unknown),
        *(f"{key}: stands there twice, with and without `.default`" for key in twice),
    ]


def _tensors(folder: str, shown: str) -> dict[str, Tensor]:
    content = files.read_input(f"{folder}/{WEIGHTS_FILE}", "adapter", "adapter.start", LARGEST_BYTES)
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise DataError(f"{shown}/{WEIGHTS_FILE}: not a safetensors file, or damaged ({error}).") from error


def _config(content: bytes, shown: str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}/{CONFIG_FILE}: not JSON ({error}).") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConfigError(f"{shown}/{CONFIG_FILE}: no LoRA adapter of peft. Expected peft_type LORA.")
    if foreign := _foreign_fields(config):
        advice = "Merge it with the tool that made it, and start from the merged gpt.pth."
        raise ConfigError(findings_message(f"{shown} uses what is not supported here", foreign, advice))
    if not _is_rank(config.get("r")) or not _is_alpha(config.get("lora_alpha")):
        found = f"r is {_brief(config.get('r'))}, lora_alpha is {_brief(config.get('lora_alpha'))}"
        raise DataError(
            f"{shown}/{CONFIG_FILE}: {found}; expected a rank from 1 to {LARGEST_RANK} and a number above 0, at most "
            f"{LARGEST_ALPHA:g}."
        )
    return config


def _foreign_fields(config: Mapping[str, Any]) -> list[str]:
    """Whatever is set and not understood: it may change what the adapter computes."""
    foreign = [f"{key}: {_brief(value)}" for key, value in config.items() if key not in _KNOWN and value]
    if config.get("bias") not in (None, "none"):
        foreign.append(f"bias: {_brief(config['bias'])}")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        foreign.append(f"init_lora_weights: {_brief(config['init_lora_weights'])}")
    return foreign


def _brief(value: object) -> str:
    return json.dumps(value)[:80]


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_RANK


def _is_alpha(value: object) -> bool:
    # NaN is not above 0.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_ALPHA


def _name_of(key: str) -> str:
    match = _FACTOR.fullmatch(key)
    return f"gpt.h.{match['block']}.{match['projection']}.lora_{match['factor']}" if match else ""


def _misfits(factors: Mapping[str, Tensor], rank: int, model: GPTConfig) -> list[str]:
    if not factors:
        return ["there are no factors of attn.c_attn, attn.c_proj, mlp.c_fc or mlp.c_proj"]
    faults = {name: _misfit(name, value, rank, model) for name, value in factors.items()}
    other = {name: name[:-1] + ("B" if name.endswith("A") else "A") for name in factors}
    return [
        *(f"{name}: {fault}" for name, fault in faults.items() if fault),
        *(f"{name}: its other factor is missing" for name in factors if other[name] not in factors),
    ]


def _misfit(name: str, value: Tensor, rank: int, model: GPTConfig) -> str:
    """What is wrong with a factor; empty for a good one."""
    place, _, factor = name.rpartition(".lora_")
    block, projection = place.split(".", 3)[2:]
    wide_in, wide_out = (size * model.model_dim for size in SIZES[projection])
    expected = (rank, wide_in) if factor == "A" else (wide_out, rank)
    if int(block) >= model.layers:
        return f"the model has {model.layers} blocks"
    return _not_numbers(value, expected)


def _not_numbers(value: Tensor, expected: tuple[int, ...]) -> str:
    """What is wrong with a tensor that should hold finite numbers in this shape; empty for a good one."""
    if tuple(value.shape) != expected or value.dtype not in _DTYPES:
        return f"shape {list(value.shape)} of {value.dtype}, expected {list(expected)} of floating-point numbers"
    return "" if bool(torch.isfinite(value).all()) else "NaN or infinity"


def _rows(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: GPTConfig, findings: list[str]
) -> dict[int, Tensor]:
    """The rows of the language table by their numbers; adds to the findings what is wrong with them."""
    indices = config.get("trainable_token_indices") or {}
    rows = _row_numbers(indices, model)
    if rows is None:
        findings.append(f"trainable_token_indices: {indices!r:.80}, expected rows of lang_embedding")
        return {}
    values = tensors.get(_ROWS, torch.empty(0, model.model_dim))
    if fault := _not_numbers(values, (len(rows), model.model_dim)):
        findings.append(f"{_ROWS}: {fault}, for the rows {rows}")
        return {}
    return dict(zip(rows, values, strict=True))


def _row_numbers(indices: object, model: GPTConfig) -> list[int] | None:
    """Numbers of rows of the language table; None if there are others, or anything else."""
    if not isinstance(indices, dict) or not set(indices) <= {"lang_embedding"}:
        return None
    rows = indices.get("lang_embedding", [])
    count = model.version.language_rows
    return rows if isinstance(rows, list) and all(type(row) is int and 0 <= row < count for row in rows) else None


def fitted(folder: AdapterFolder, config: AdapterConfig) -> dict[str, Tensor]:
    """The factors, if an adapter of the same or a larger rank can compute the same function with them.

    Args:
        folder: The adapter to start from.
        config: The adapter to fill. Its alpha / rank has to be that of the folder.

    Raises:
        ConfigError: The rank is smaller, the scale another, or a projection is not adapted.
    """
    scale = folder.alpha / folder.rank
    if config.rank < folder.rank or abs(config.scale - scale) > 1e-9 * scale:
        raise ConfigError(
            f"adapter.start: {redacted(config.start)} has rank {folder.rank} and alpha {folder.alpha:g}, adapter.rank "
            f"is {config.rank} and adapter.alpha {config.alpha:g}. Give a rank of at least {folder.rank}, and alpha = "
            f"{scale:g} x rank."
        )
    return {name: value.float() for name, value in folder.factors.items()}
