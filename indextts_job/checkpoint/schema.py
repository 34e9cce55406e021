"""The values of a checkpoint, checked once, where they are parsed. Pure.

A schema is a type, a tuple of schemas of which one fits, a list with the schema of its entries, or a mapping of
keys to schemas (a key that ends in `?` may be missing). Keys that a schema does not name are let through, except in a
`Closed` one: training goes on from these values, so one that it does not know would be lost.
"""

import math
from collections.abc import Mapping
from typing import Any

from indextts_job.errors import ConfigError, DataError


class Closed(dict[str, Any]):
    """A mapping of keys to schemas without any other keys."""


_COUNT = int
_LOSSES = Closed(text_loss=float, mel_loss=float, mel_top1=float, total=float)
_SUMS = Closed(steps=_COUNT, **_LOSSES, grad_norm=float)
_VALIDATION = Closed({"step": _COUNT, "losses": _LOSSES, "train_total?": (float, None)})
VALUES: Mapping[str, Any] = {
    "config": {"recipe": dict, "schedule": dict, "data": dict, "hardware": dict, "storage?": dict},
    "model_config": {"gpt": dict},
    "order": {
        "version": _COUNT,
        "seed": _COUNT,
        "global_batch_samples": _COUNT,
        "num_samples": _COUNT,
        "dataset_fingerprint": str,
    },
    "total_steps": _COUNT,
    "dataset": {"manifests": [str], "languages": dict, "codes": _COUNT, "skipped_samples": [str]},
    "tokenizer": {"pieces": _COUNT, "fingerprint": str},
    "vocabulary": Closed(pieces=_COUNT, base_pieces=_COUNT),
    "parameters": {"trained": _COUNT},
    "lineage": {"run?": str, "checkpoint?": str, "step?": _COUNT},
    "environment": {"hardware": dict, "plan": dict},
    "history": Closed(
        {
            "samples": _COUNT,
            "tokens": _COUNT,
            "scaler_skips": _COUNT,
            "interval": _SUMS,
            "since_validation?": _SUMS,
            "last_line?": (_LOSSES, None),
            "validations": [_VALIDATION],
            "best": (_VALIDATION, None),
            "validations_without_improvement": _COUNT,
            "overfitting_since?": (_COUNT, None),
        }
    ),
    "scaler": (dict, None),
    "learning_rate?": (float, None),
    "pace?": Closed(micro_batch_s=float, update_s=float, save_s=float),
    "reference?": (
        {"samples": [str], "text_loss": float, "mel_loss": float, "precision": str, "device": str},
        None,
    ),
}
"""What `CheckpointManifest.values` holds."""
_AT_LEAST_ONE = ("order.global_batch_samples", "order.num_samples", "total_steps", "vocabulary.pieces")


def check_values(values: object, where: str) -> dict[str, Any]:
    """The values of a checkpoint, which are what they should be.

    Args:
        values: As they were parsed.
        where: The manifest, for the message.

    Raises:
        DataError: Naming the first that is not.
    """
    problem = _problem(values, VALUES, "values")
    assert problem or isinstance(values, dict)  # noqa: S101  # the schema is a mapping
    if problem is None and isinstance(values, dict):
        for path in _AT_LEAST_ONE:
            section, _, key = path.rpartition(".")
            number = (values[section] if section else values)[key]
            if number < 1:
                problem = f"values.{path} is {number}, expected at least 1"
    if problem is not None or not isinstance(values, dict):
        raise DataError(f"{where}: {problem}; the manifest is damaged.")
    return values


def demand_storable(values: object, where: str) -> None:
    """Find out before the first step that a value cannot be recorded in a checkpoint.

    Args:
        values: What every checkpoint of a run will record.
        where: They come from, to begin the path of the value.

    Raises:
        ConfigError: Naming the value: an infinite number, a date, anything that JSON does not have.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is no text. Put it in quotes.")
            demand_storable(value, f"{where}.{key}")
    elif isinstance(values, (list, tuple)):
        for index, value in enumerate(values):
            demand_storable(value, f"{where}[{index}]")
    elif not (
        values is None or isinstance(values, (str, int)) or (isinstance(values, float) and math.isfinite(values))
    ):
        raise ConfigError(f"{where} is {values!r}, which no checkpoint can record. Give a finite number or a text.")


def _problem(value: object, schema: Any, path: str) -> str | None:  # noqa: ANN401
    """What is wrong with a value; None if nothing is."""
    if isinstance(schema, tuple):
        problems = [_problem(value, one, path) for one in schema]
        return None if None in problems else problems[0]
    if isinstance(schema, Mapping):
        return _problem_of_mapping(value, schema, path)
    if isinstance(schema, list) and isinstance(value, list):
        return next(filter(None, (_problem(one, schema[0], f"{path}[{i}]") for i, one in enumerate(value))), None)
    kind = list if isinstance(schema, list) else schema
    return None if _fits(value, kind) else f"{path} is {_shown(value)}, expected {_EXPECTED[kind]}"


def _problem_of_mapping(value: object, schema: Mapping[str, Any], path: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{path} is {_shown(value)}, expected keys and values"
    for key, one in schema.items():
        name = key.removesuffix("?")
        if name not in value:
            if key.endswith("?"):
                continue
            return f"{path}.{name} is missing"
        if problem := _problem(value[name], one, f"{path}.{name}"):
            return problem
    further = [key for key in value if key not in schema and f"{key}?" not in schema]
    return (
        f"{path} holds {further[0]!r}, which this release does not know"
        if isinstance(schema, Closed) and further
        else None
    )


def _fits(value: object, kind: type | None) -> bool:
    if kind is None or value is None:
        return kind is value
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and 0 <= value < 2**63
    return isinstance(value, kind)


_EXPECTED = {
    None: "null",
    list: "a list",
    int: "a whole number from 0 on",
    float: "a finite number",
    str: "a text",
    dict: "keys and values",
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
