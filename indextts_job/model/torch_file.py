"""Files of `torch.save` from anywhere: nothing in them is executed, and no memory is taken on their word.

Tensors are read with `weights_only=True`. The file has to be the archive that `torch.save` writes: entries that are
not compressed and together no larger than the file, so that it cannot unfold into more than it is.
"""

import io
import re
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from indextts_job.errors import DataError
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.errors import translated

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FOREIGN = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class) ([\w.]+)")
"""How torch names an object that is no tensor; only for the message."""
LARGEST_PICKLE_BYTES = 2**26
"""Of the description of all tensors; that of the released model has some 100 KB."""


def read_torch_file(url: str, what: str, key: str) -> Any:  # noqa: ANN401  # whatever was saved
    """What a file holds; a local one is mapped, so tensors cost no memory until they are used.

    Args:
        url: Path or URL.
        what: The thing in words, for messages.
        key: The configuration key that names it.

    Raises:
        ConfigError: It is not there.
        DataError: It cannot be read.
    """
    shown = redacted(url)
    if files.is_local(url):
        path = files.local_path(url)
        with translated(f"reading {url}"):
            if path.is_file():
                with path.open("rb") as file:
                    _demand_archive(file, path.stat().st_size, shown)
                return _load(path, shown, mapped=True)
    content = files.read_input(url, what, key)
    _demand_archive(io.BytesIO(content), len(content), shown)
    return _load(io.BytesIO(content), shown, mapped=False)


def unusual(tensor: Tensor) -> str:
    """What keeps a tensor from being a plain one in memory; empty for a plain one."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    return "without data" if tensor.device.type == "meta" else ""


def _load(source: Any, shown: str, *, mapped: bool) -> Any:  # noqa: ANN401
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # damaged pickles make it raise nearly anything
        raise _unreadable(shown, _reason(error)) from error


def _reason(error: Exception) -> str:
    """What torch says, in a few words: its text has colours, advice to load the file unsafely, and many lines."""
    text = _COLOURS.sub("", str(error)).strip()
    if match := _FOREIGN.search(text):
        return f"it holds a {match[1]}"
    return text.splitlines()[0] if text else type(error).__name__


def _demand_archive(file: BinaryIO, size_bytes: int, shown: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _unreadable(shown, f"no archive of torch.save: {error}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _unreadable(shown, "it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size_bytes:
        raise _unreadable(shown, f"its entries claim more than its {size_bytes} bytes")
    if any(entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE_BYTES for entry in entries):
        raise _unreadable(shown, "its table of tensors is too large")


def _unreadable(shown: str, reason: str) -> DataError:
    return DataError(
        f"{shown}: not a readable PyTorch checkpoint ({reason}). It may be truncated, or hold objects besides tensors, "
        "which are never loaded. Expected IndexTTS2's gpt.pth."
    )
