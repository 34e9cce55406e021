"""One `.npy` file of a sample: read it, check that training can use it, and take a digest of its content."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.data.archives import Reader, archive_of
from indextts_job.data.dataset import Limits, Use, Values, content_digest
from indextts_job.data.npy import NpyFormatError, parse_npy
from indextts_job.errors import ConfigError, DataError
from indextts_job.model.config import GPTConfig
from indextts_job.model.languages import WITH_TOKEN, language_of_token
from indextts_job.model.versions import ModelVersion
from indextts_job.storage import files

Progress = Callable[[int, int], None]
"""Called with (arrays done, arrays in all)."""
LEAST_LIMIT_BYTES = 2**20
"""A file up to this size is read even where a smaller one is expected, so that the message can say what it holds."""
WIDEST_ITEM_BYTES = 16
"""Item size of the widest dtype of numpy (complex128): a wrong dtype is reported as such, not as too large a file."""

RELEASED_FIRST_LANGUAGE = 58838
"""Id of the first language's token in the released tokenizer of IndexTTS-2.5."""
RELEASED_IDS = (
    "encoded with the released tokenizer, whose ids an extension moves. Encode the texts again with the extension"
)
_ENCODE_AGAIN = (
    "Encode the texts again (doctor data --repair re-encode); where they are ids of this very tokenizer, add the "
    "prefix (--repair add-prefix)"
)
OTHER_TOKENIZER_IDS = 12000
"""Number of pieces of the released SentencePiece model of IndexTTS-2.0."""


class BadArrayError(Exception):
    """An array is unusable; the message names file, finding and expectation."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Text ids or codes of one utterance."""

    values: npt.NDArray[np.int32]
    digest: bytes
    stored: int = 0
    """Number of ids in the file; larger than that of `values` where the version drops some."""

    @property
    def tail(self) -> int:
        """Number of equal ids at the end."""
        other = np.flatnonzero(self.values != self.values[-1])
        return len(self.values) - (int(other[-1]) + 1 if len(other) else 0)


@dataclass(frozen=True, slots=True)
class Vector:
    """A conditioning array or an emotion vector; its values were checked and are not kept."""

    digest: bytes
    norm: float = 0.0


def spoken_ids(values: npt.NDArray[np.int32], version: ModelVersion) -> npt.NDArray[np.int32]:
    """The text ids that the model reads: those of a file, without the ids that inference drops."""
    dropped = version.dropped_text_ids
    return np.ascontiguousarray(values[~np.isin(values, dropped)]) if dropped else values


def check_array(path: str, use: Use, limits: Limits, reader: Reader | None = None) -> Ids | Vector:
    """Read and check one file.

    Args:
        path: Path or URL of the file, or of a member of an archive.
        use: The use of the array, which decides the expected shape, dtype and range.
        limits: The demands of model and tokenizer.
        reader: Keeps the archive that was read last.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    model, reader = limits.model, reader or Reader()
    if use == "text":
        return check_text(path, limits, reader)
    if use == "codes":
        return check_ids(path, model.number_codes, model.max_mel_tokens, "code", reader)
    if use == "condition":
        return _check_condition(path, model, reader)
    return check_vector(path, (model.model_dim,), "after both projections" if model.version.ranks else "", reader)


def _check_condition(path: str, model: GPTConfig, reader: Reader) -> Vector:
    hint = "CAMPPlus of the prompt, before projection" if model.version.speaker_width else ""
    vector = check_vector(path, model.speaker_shape, hint, reader)
    if model.version.speaker_width and not vector.norm:
        raise BadArrayError(f"{path}: all values are zero, expected {hint}")
    return vector


def read_array(path: str, use: Use, limits: Limits, digest: bytes, reader: Reader | None = None) -> Values | None:
    """The values of a file that was checked before; None if its content is another one now.

    Args:
        path: Path or URL of the file, or of a member of an archive.
        use: The use of the array.
        limits: The demands that it was checked with.
        digest: Its digest then.
        reader: Keeps the archive that was read last.

    Raises:
        FileNotFoundError: It is gone.
        ValueError: It is no array any more.
    """
    model = limits.model
    is_ids = use in ("text", "codes")
    most_values = max(model.max_text_tokens, model.max_mel_tokens, math.prod(model.speaker_shape), model.model_dim)
    array = parse_npy((reader or Reader()).read(path, _limit_bytes(most_values)))
    values: Values = np.ascontiguousarray(array, dtype=np.int32 if is_ids else np.float32)
    if use == "text":
        values = spoken_ids(values, model.version)
    return values if content_digest(values) == digest else None


def check_text(path: str, limits: Limits, reader: Reader) -> Ids:
    """Text ids from their file, without those that the version drops.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    version, longest = limits.model.version, limits.model.max_text_tokens
    # Dropped ids do not count, so a file may hold somewhat more than the model reads.
    stored = check_ids(
        path, limits.text_pieces, 2 * longest if version.dropped_text_ids else longest, "text id", reader
    )
    values = spoken_ids(stored.values, version)
    if len(values) > longest:
        raise BadArrayError(f"{path}: {len(values)} values, the model's limit is {longest}")
    first = limits.first_language_token
    if first is not None and (not len(values) or language_of_token(int(values[0]), first) is None):
        raise BadArrayError(f"{path}: {_prefix_fault(stored.values, first)}")
    if len(values) == len(stored.values):
        return stored
    return Ids(values, content_digest(values), len(stored.values))


def of_released_tokenizer(token: int, first: int) -> bool:
    """Whether an id is a language's token in the released tokenizer, but the tokenizer in use is an extension of it.

    Args:
        token: The first id of a text.
        first: Id of the first language's token in the tokenizer in use.
    """
    return first != RELEASED_FIRST_LANGUAGE and language_of_token(token, RELEASED_FIRST_LANGUAGE) is not None


def _prefix_fault(values: npt.NDArray[np.int32], first: int) -> str:
    """What is wrong with ids that do not begin with the token of a language."""
    found = f"its first id is {values[0]}, expected a language's token ({first} … {first + WITH_TOKEN - 1})"
    if of_released_tokenizer(int(values[0]), first):
        return f"{found}: {RELEASED_IDS}"
    if values[0] >= first + WITH_TOKEN:
        return f"{found}: made by a tokenizer with 100 languages? Encode the texts again with the model's tokenizer"
    if values.max() < OTHER_TOKENIZER_IDS:
        return (
            f"{found}, and all ids are below {OTHER_TOKENIZER_IDS}: ids of another tokenizer, that of IndexTTS-2.0 for "
            f"example, or the prefix is missing. {_ENCODE_AGAIN}"
        )
    return f"{found}: the prefix is missing, or they are ids of another tokenizer. {_ENCODE_AGAIN}"


def check_ids(path: str, count: int, longest: int, what: str, reader: Reader | None = None) -> Ids:
    """Text ids or codes from their file.

    Args:
        path: Path or URL.
        count: Number of valid ids: 0 .. count - 1.
        longest: Largest number of ids that the model accepts.
        what: Name of one id for messages, `code` for example.
        reader: Keeps the archive that was read last.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    array = _read_array(path, longest, reader or Reader())
    if not np.issubdtype(array.dtype, np.integer):
        raise BadArrayError(f"{path}: dtype {array.dtype}, expected integers")
    if array.ndim != 1 or not array.size:
        raise BadArrayError(f"{path}: shape {list(array.shape)}, expected [n] with n of at least 1")
    if array.size > longest:
        raise BadArrayError(f"{path}: {array.size} values, the model's limit is {longest}")
    _demand_range(array, count, f"{path}: {what}")
    values = np.ascontiguousarray(array, dtype=np.int32)
    return Ids(values, content_digest(values), len(values))


def _demand_range(ids: npt.NDArray[Any], count: int, what: str) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        place = int(np.flatnonzero(ids == wrong)[0])
        raise BadArrayError(f"{what} {wrong} at position {place} out of range, expected 0 … {count - 1}")


def check_vector(path: str, shape: tuple[int, ...], hint: str = "", reader: Reader | None = None) -> Vector:
    """A conditioning array or an emotion vector from its file.

    Args:
        path: Path or URL.
        shape: The expected shape.
        hint: What such a vector is, for the message about a wrong shape.
        reader: Keeps the archive that was read last.

    Raises:
        BadArrayError: The file cannot be trained on.
    """
    array = _read_array(path, math.prod(shape), reader or Reader())
    if array.dtype not in (np.float32, np.float16):
        raise BadArrayError(f"{path}: dtype {array.dtype}, expected float32 or float16")
    if array.shape != shape:
        expected = f"{list(shape)} ({hint})" if hint else f"{list(shape)}"
        raise BadArrayError(f"{path}: shape {list(array.shape)}, expected {expected}")
    vector = np.asarray(array, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise BadArrayError(f"{path}: holds NaN or infinity")
    # The norms of a dataset are kept in float32, and that of huge numbers is beyond it.
    norm = min(np.linalg.norm(vector.astype(np.float64)), np.finfo(np.float32).max)
    return Vector(content_digest(vector), float(norm))


def _read_array(path: str, most_values: int, reader: Reader) -> npt.NDArray[np.generic]:
    try:
        return parse_npy(reader.read(path, _limit_bytes(most_values)))
    except FileNotFoundError:
        file = archive_of(path) or path
        raise BadArrayError(f"{file}: file not found{_not_found_hint(file)}") from None
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
