"""One `.npy` file of a sample: read it, check that training can use it, and take a digest of its content."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from indextts_job.data.dataset import Limits, Use, Values, content_digest
from indextts_job.data.npy import NpyFormatError, parse_npy
from indextts_job.errors import ConfigError, DataError
from indextts_job.model.config import CONDITION_LATENTS
from indextts_job.storage import files

Progress = Callable[[int, int], None]
"""Called with (arrays done, arrays in all)."""
LEAST_LIMIT_BYTES = 2**20
"""A file up to this size is read even where a smaller one is expected, so that the message can say what it holds."""
WIDEST_ITEM_BYTES = 16
"""Item size of the widest dtype of numpy (complex128): a wrong dtype is reported as such, not as too large a file."""


class BadArrayError(Exception):
    """An array is unusable; the message names file, finding and expectation."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Text ids or codes of one utterance."""

    values: npt.NDArray[np.int32]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Vector:
    """A conditioning array or an emotion vector; its values were checked and are not kept."""

    digest: bytes


def check_array(path: str, use: Use, limits: Limits) -> Ids | Vector:
    """Read and check one file.

    Args:
        path: Path or URL.
        use: The use of the array, which decides the expected shape, dtype and range.
        limits: The sizes that model and tokenizer allow.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    model = limits.model
    if use == "text":
        return check_ids(path, limits.text_pieces, model.max_text_tokens, "text id")
    if use == "codes":
        return check_ids(path, model.number_codes, model.max_mel_tokens, "code")
    return check_vector(path, (CONDITION_LATENTS, model.model_dim) if use == "condition" else (model.model_dim,))


def read_array(path: str, use: Use, limits: Limits, digest: bytes) -> Values | None:
    """The values of a file that was checked before; None if its content is another one now.

    Args:
        path: Path or URL.
        use: The use of the array.
        limits: The sizes that it was checked with.
        digest: Its digest then.

    Raises:
        FileNotFoundError: It is gone.
        ValueError: It is no array any more.
    """
    model = limits.model
    is_ids = use in ("text", "codes")
    most_values = max(model.max_text_tokens, model.max_mel_tokens, CONDITION_LATENTS * model.model_dim)
    array = parse_npy(files.read_bytes(path, _limit_bytes(most_values)))
    values = np.ascontiguousarray(array, dtype=np.int32 if is_ids else np.float32)
    return values if content_digest(values) == digest else None


def check_ids(path: str, count: int, longest: int, what: str) -> Ids:
    """Text ids or codes from their file.

    Args:
        path: Path or URL.
        count: Number of valid ids: 0 .. count - 1.
        longest: Largest number of ids that the model accepts.
        what: Name of one id for messages, `code` for example.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    array = _read_array(path, longest)
    if not np.issubdtype(array.dtype, np.integer):
        raise BadArrayError(f"{path}: dtype {array.dtype}, expected integers")
    if array.ndim != 1 or not array.size:
        raise BadArrayError(f"{path}: shape {list(array.shape)}, expected [n] with n of at least 1")
    if array.size > longest:
        raise BadArrayError(f"{path}: {array.size} values, the model's limit is {longest}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise BadArrayError(f"{path}: {what} {wrong} out of range, expected 0 … {count - 1}")
    values = np.ascontiguousarray(array, dtype=np.int32)
    return Ids(values, content_digest(values))


def check_vector(path: str, shape: tuple[int, ...]) -> Vector:
    """A conditioning array or an emotion vector from its file.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    most_values = math.prod(shape)
    array = _read_array(path, most_values)
    if array.dtype not in (np.float32, np.float16):
        raise BadArrayError(f"{path}: dtype {array.dtype}, expected float32 or float16")
    if array.shape != shape:
        raise BadArrayError(f"{path}: shape {list(array.shape)}, expected {list(shape)}")
    vector = np.asarray(array, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise BadArrayError(f"{path}: holds NaN or infinity")
    return Vector(content_digest(vector))


def _read_array(path: str, most_values: int) -> npt.NDArray[np.generic]:
    try:
        return parse_npy(files.read_bytes(path, _limit_bytes(most_values)))
    except FileNotFoundError:
        raise BadArrayError(f"{path}: file not found{_not_found_hint(path)}") from None
    except NpyFormatError as error:
        raise BadArrayError(f"{path}: {error}") from None
    except (DataError, ConfigError) as error:  # not a regular file, too large, or not a valid path
        raise BadArrayError(str(error)) from None


def _limit_bytes(most_values: int) -> int:
    # Twice the values, so that a somewhat longer array is reported with its length.
    return max(LEAST_LIMIT_BYTES, 2 * WIDEST_ITEM_BYTES * most_values)


def _not_found_hint(path: str) -> str:
    """The likely reason why a file is missing; empty if none is known."""
    if not files.is_local(path):
        return ""
    if hint := files.backslash_hint(path):
        return f".{hint.removesuffix('.')}"
    return _working_directory_hint(path) or _other_machine_hint(path)


def _working_directory_hint(path: str) -> str:
    # The public preprocessing writes paths relative to the working directory instead of the manifest's folder.
    parts = PurePosixPath(path).parts
    candidates = (Path(*parts[start:]) for start in range(1, len(parts)))
    existing = next((candidate for candidate in candidates if candidate.is_file()), None)
    if existing is None:
        return ""
    return (
        f", but {existing} exists below the working directory: write the manifest's paths relative to its own "
        "folder, or absolute for this machine"
    )


def _other_machine_hint(path: str) -> str:
    file = files.local_path(path)
    missing = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    if not missing or not (file.is_absolute() or path.startswith("~")):
        return ""
    return (
        f", because there is no {missing[-1]} on this machine. If the manifest comes from another one, put its "
        "arrays beside it and write their paths relative to it"
    )
