"""Read untrusted files of `torch.save` without running code from them and without unbounded memory.

Tensors are read with `weights_only=True`. The file has to be an archive as `torch.save` writes it, with uncompressed
entries that are together no larger than the file: a small file cannot expand into a large one.
"""

import contextlib
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from indextts_job.errors import DataError
from indextts_job.hashing import Buffer
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.errors import translated
from indextts_job.storage.remote_files import Bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FOREIGN = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class) ([\w.]+)")
"""The text in which torch names an object that is no tensor. Used for the message only."""
LARGEST_PICKLE_BYTES = 2**26
"""Bound of the archive's entry that describes all tensors; in the released model it has about 100 KB."""


def read_torch_file(url: str, what: str, key: str, expected: str = "IndexTTS's gpt.pth") -> Any:  # noqa: ANN401  # whatever was saved
    """The object that a file holds. A local file is mapped, so its tensors use no memory until they are read.

    Args:
        url: Path or URL.
        what: The name of the file's kind for messages, `base checkpoint` for example.
        key: The configuration key that the URL comes from.
        expected: The file that should be there, for messages.

    Raises:
        ConfigError: The file does not exist.
        DataError: The file cannot be read.
    """
    try:
        return _read(url, what, key)
    except _UnreadableError as error:
        raise DataError(
            f"{redacted(url)}: not a readable PyTorch checkpoint ({error}). It may be truncated, or hold objects "
            f"besides tensors, which are never loaded. Expected {expected}."
        ) from error


class _UnreadableError(Exception):
    """The content is no file of tensors; the message is the reason."""


def _read(url: str, what: str, key: str) -> Any:  # noqa: ANN401
    path = files.local_path(url) if files.is_local(url) else copy_of(url)
    if isinstance(path, Path):
        with translated(f"reading {url}"):
            if path.is_file():
                with path.open("rb") as file:
                    _demand_archive(file, path.stat().st_size)
                return _load(path, mapped=True)
        path = None
    # A local file that is missing comes here too, for the message that names the configuration key.
    content = files.read_input(url, what, key) if path is None else path.data
    _demand_archive(_InMemory(content), len(content))
    return _load(_InMemory(content), mapped=False)


class _InMemory(io.RawIOBase, BinaryIO):
    """Bytes as a file. `BytesIO` would copy those of an array, and a base checkpoint has gigabytes."""

    def __init__(self, content: Buffer) -> None:
        super().__init__()
        self._content = memoryview(content).cast("B")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._content)}[whence]
        if start + offset < 0:
            raise ValueError(f"{start + offset} lies before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, place: "WriteableBuffer") -> int:
        into = memoryview(place).cast("B")
        part = self._content[self._at : self._at + len(into)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)


def copy_of(url: str) -> Path | Bytes | None:
    """A remote file by its copy on this node; None where there is none, also for the message that the file is gone."""
    with contextlib.suppress(FileNotFoundError):
        return files.local_copy(url)
    return None


def unusual(tensor: Tensor) -> str:
    """How a tensor differs from a plain one in memory; empty for a plain tensor."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    return "without data" if tensor.device.type == "meta" else ""


def _load(source: Any, *, mapped: bool) -> Any:  # noqa: ANN401
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise  # a failed read is no fault of the content; the caller translates it
    except Exception as error:  # for a damaged pickle torch raises nearly any class
        raise _UnreadableError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The first line of torch's message, without terminal colours, or the class of the object that it refused."""
    # The rest of the message advises to load the file without `weights_only`, which would run its code.
    text = _COLOURS.sub("", str(error)).strip()
    if match := _FOREIGN.search(text):
        return f"it holds a {match[1]}"
    return text.splitlines()[0] if text else type(error).__name__


def _demand_archive(file: BinaryIO, size_bytes: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _UnreadableError(f"no archive of torch.save: {error}") from error
    if fault := _archive_fault(entries, size_bytes):
        raise _UnreadableError(fault)


def _archive_fault(entries: Sequence[zipfile.ZipInfo], size_bytes: int) -> str:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "it is compressed, which torch.save never does"
    # Entries may overlap in a forged archive, so the sum is checked too.
    if sum(entry.file_size for entry in entries) > size_bytes:
        return f"its entries claim more than its {size_bytes} bytes"
    # Unpickling makes Python objects that take many times the memory of their description.
    if any(entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE_BYTES for entry in entries):
        return "its table of tensors is too large"
    return ""
