"""Weights of encoders: read without running code, strictly by key and shape, and identified by their content."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from indextts_job.errors import DataError, findings_message
from indextts_job.model.torch_file import copy_of, read_torch_file, unusual
from indextts_job.model.versions import Shape
from indextts_job.redaction import redacted
from indextts_job.storage import files

Ignored = Callable[[str], object]
"""Whether a key of a file belongs to a part of it that is not used."""
_CACHED_STEPS = "num_batches_tracked"
"""Counters of batch norms, which inference does not read; not every file has them."""


def read_tensors(url: str, what: str, key: str) -> dict[str, Tensor]:
    """All tensors of a file: safetensors, or a flat dictionary of `torch.save`, which may stand under `model`.

    Args:
        url: Path or URL.
        what: The kind of file in words, for messages.
        key: The configuration key that names it.

    Raises:
        ConfigError: The file does not exist.
        DataError: It is no such file.
    """
    if url.endswith(".safetensors"):
        return _safetensors(url, what, key)
    content = read_torch_file(url, what, key, what)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise DataError(f"{redacted(url)}: holds a {type(content).__name__}, expected the tensors of the {what}.")
    return _plain(content, redacted(url), what)


def _safetensors(url: str, what: str, key: str) -> dict[str, Tensor]:
    path = files.local_path(url) if files.is_local(url) else copy_of(url)
    try:
        if isinstance(path, Path) and path.is_file():
            return dict(safetensors.torch.load_file(path))
        # A local file that is missing comes here too, for the message that names the configuration key.
        return dict(safetensors.torch.load(files.read_input(url, what, key)))
    except (safetensors.SafetensorError, ValueError) as error:
        raise DataError(f"{redacted(url)}: no readable safetensors file ({error}). Expected the {what}.") from error


def _plain(content: Mapping[Any, Any], where: str, what: str) -> dict[str, Tensor]:
    wrong = [f"{name!r:.80}: {_kind(name, value)}" for name, value in content.items() if _kind(name, value)]
    if wrong:
        raise DataError(findings_message(f"{where} holds more than plain tensors", wrong, f"Expected the {what}."))
    return dict(content)


def _kind(name: object, value: object) -> str:
    """What a pair is instead of the name of a plain tensor and the tensor; empty if it is one."""
    if not isinstance(name, str):
        return "a key that is no text"
    return unusual(value) if isinstance(value, Tensor) else type(value).__name__


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str, unused: Ignored) -> dict[str, Tensor]:
    """Fill a module with tensors; every key has to fit.

    Args:
        module: On any device, `meta` included.
        tensors: By the module's names.
        where: The file, for messages.
        unused: Whether a key belongs to a part of the file that is not used; no other key may be left over.

    Returns:
        The tensors that were used.

    Raises:
        DataError: A key is missing or left over, or a tensor has another shape or type; names all of them.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    counters = {name for name in expected if name.endswith(_CACHED_STEPS)}
    given = {name: tensor for name, tensor in tensors.items() if not unused(name)}
    _demand_fitting(given, expected, counters, where)
    # A copy: the tensors of a mapped file would change or vanish with it.
    filled = {name: value.to(_loaded_as(value), copy=True) for name, value in given.items()}
    zeros = {name: torch.zeros((), dtype=torch.int64) for name in counters - given.keys()}
    module.load_state_dict({**filled, **zeros}, assign=True)
    return {name: tensor for name, tensor in given.items() if name not in counters}


def _loaded_as(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _demand_fitting(
    given: Mapping[str, Tensor], expected: Mapping[str, Shape], optional: Collection[str], where: str
) -> None:
    if findings := _misfits(given, expected, optional):
        advice = "Is it the file of this encoder, of the release that belongs to the model?"
        raise DataError(findings_message(f"{where} does not fit its encoder", findings, advice))


def _misfits(given: Mapping[str, Tensor], expected: Mapping[str, Shape], optional: Collection[str]) -> list[str]:
    missing = [name for name in expected if name not in given and name not in optional]
    return [
        *(f"{name}: missing, expected {list(expected[name])}" for name in missing),
        *(f"{name}: unknown key" for name in given if name not in expected),
        *(
            f"{name}: {tensor.dtype} {list(tensor.shape)}, expected numbers of shape {list(expected[name])}"
            for name, tensor in given.items()
            if name in expected and not _fits(tensor, expected[name], counter=name in optional)
        ),
    ]


def _fits(tensor: Tensor, shape: Shape, *, counter: bool) -> bool:
    return tuple(tensor.shape) == shape and (counter or tensor.is_floating_point())
