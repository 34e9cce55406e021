"""The outcome of a check that lasted minutes, kept with the run: the next attempt reads no array again.

It is kept under a hash of everything that it depends on: the bytes of the manifest, its argument, the limits, and the
version of the check. The arrays themselves are not part of it. Each is compared with its digest when training reads
it, so one that has changed meanwhile is noticed then. What is damaged, or of somebody else, is checked anew.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors

from indextts_job.data.checking import CheckedManifest
from indextts_job.data.containers import arrays_of, header_of, written
from indextts_job.data.dataset import DIGEST_BYTES, USES, Column, Limits, SkippedSample
from indextts_job.data.manifest_source import ManifestSource
from indextts_job.data.texts import Paths, stored_texts
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage import files
from indextts_job.storage.urls import resolved

FOLDER = "data"
CHECK_VERSION = 2
"""Of the check and of its stored outcome; another one has the dataset checked again."""

logger = logging.getLogger(__name__)


class Memory(Protocol):
    """Keeps bytes under keys. A run's storage is one."""

    def read(self, key: str) -> bytes:
        """What was written; FileNotFoundError when there is nothing."""

    def write(self, key: str, content: bytes) -> None:
        """Keep bytes."""

    def delete(self, key: str) -> None:
        """Forget what was kept."""


class WrittenLater:
    """A memory that is read at once, and written when `flush` is called: a start that fails leaves nothing behind.

    Args:
        memory: What is read and written.
        writes: Whether there will be a `flush`; without it nothing is kept for it.
    """

    def __init__(self, memory: Memory, *, writes: bool) -> None:
        self._memory = memory
        self._writes = writes
        self._waiting: dict[str, bytes] = {}
        self._read: list[str] = []

    def read(self, key: str) -> bytes:
        """See `Memory`."""
        content = self._memory.read(key)
        self._read.append(key)
        return content

    def delete(self, key: str) -> None:
        """See `Memory`."""
        self._memory.delete(key)

    def forget(self) -> None:
        """Forget what was read: an array has changed since it was checked, so the next attempt checks all again."""
        while self._read:
            with contextlib.suppress(OSError, IndexTTSJobError):
                self._memory.delete(self._read.pop())

    def write(self, key: str, content: bytes) -> None:
        """See `Memory`."""
        if self._writes:
            self._waiting[key] = content

    def flush(self) -> None:
        """Write what waits. It only saves time later, so a failure is a warning."""
        while self._waiting:
            key, content = self._waiting.popitem()
            try:
                self._memory.write(key, content)
            except (OSError, IndexTTSJobError) as error:
                logger.warning("the next attempt has to check the data again: %s", error)


def key_of(manifest: bytes, source: ManifestSource, limits: Limits, *, skip_bad_samples: bool) -> str:
    """The key that the outcome of a check is kept under.

    Args:
        manifest: The bytes of the manifest.
        source: Its URL, which paths are relative to, and its language.
        limits: The sizes that model and tokenizer allow.
        skip_bad_samples: Whether bad samples are left out.
    """
    model = limits.model
    depends_on = {
        "check": CHECK_VERSION,
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "source": [source.url, source.language],
        "skip_bad_samples": skip_bad_samples,
        "text": [limits.text_pieces, model.max_text_tokens],
        "codes": [model.number_codes, model.max_mel_tokens],
        "vectors": [*model.speaker_shape, model.model_dim],
        "version": [model.version.name, limits.tokenizer_sha256 if model.version.ranks else ""],
        "pairs": [limits.emotion, limits.self_pairs],
    }
    return f"{FOLDER}/{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()}.safetensors"


def recalled(memory: Memory, key: str, source: ManifestSource) -> CheckedManifest | None:
    """What was remembered under a key; None if it is nothing, damaged, or none of ours."""
    try:
        content = memory.read(key)
    except (OSError, IndexTTSJobError):
        return None  # not there, or not to be had: the check costs time and nothing else
    try:
        header = header_of(content)
        if header["key"] != key:
            raise ValueError("it was kept under another name")
        return _checked(header, arrays_of(content, header), source)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        logger.warning("%s is damaged or none of ours (%s); the data is checked again.", key, error)
        return None


def remember(memory: Memory, key: str, checked: CheckedManifest, source: ManifestSource) -> None:
    """Keep the outcome of a check."""
    paths = checked.paths
    stored = paths.names.arrays("name")
    if not files.is_local(source.url) and ("?" in json.dumps(paths.folders) or b"?" in stored["name_values"].tobytes()):
        return  # signed links: a run's folder holds no secrets
    header = {
        "key": key,
        "languages": checked.languages,
        "folders": paths.folders,
        "skipped": [asdict(sample) for sample in checked.skipped],
        "notes": checked.notes,
    }
    arrays = {
        **checked.ids.arrays("id"),
        **stored,
        "folder": paths.folder,
        "language": checked.language,
        "line": checked.line,
        "files": checked.files,
        "digests": checked.digests,
        "lengths": checked.lengths,
    }
    memory.write(key, written(header, arrays))


def _leads_away(folder: str, manifest: str) -> bool:
    """Whether a manifest could not name files of a folder; those of a local one may be any local files."""
    # The folder of a manifest that was given by a relative path is relative too, but to the working directory.
    return resolved(folder, manifest) != folder and not files.is_local(manifest)


def _checked(
    header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], source: ManifestSource
) -> CheckedManifest:
    ids = stored_texts(arrays["id_values"], arrays["id_offsets"], "ids")
    names = stored_texts(arrays["name_values"], arrays["name_offsets"], "names")
    folders, languages = _texts(header["folders"]), _texts(header["languages"])
    # A file of the run must not lead to files that the manifest could not name.
    if any(_leads_away(folder, source.url) for folder in folders) or b"/" in arrays["name_values"].tobytes():
        raise ValueError("a path leads away from its manifest")
    samples, count = len(ids), len(names)
    digests = arrays["digests"]
    if not samples or digests.dtype != np.uint8 or digests.shape != (count, DIGEST_BYTES):
        raise ValueError("there are no samples, or files without a digest")
    return CheckedManifest(
        ids=ids,
        languages=languages,
        language=_places(arrays["language"], (samples,), len(languages)),
        line=_places(arrays["line"], (samples,), 2**31 - 1),
        files=_places(arrays["files"], (samples, len(USES)), count),
        paths=Paths(folders, _places(arrays["folder"], (count,), len(folders)), names),
        digests=digests,
        lengths=_places(arrays["lengths"], (count,), 2**31 - 1),
        skipped=tuple(SkippedSample(*_texts([entry["id"], entry["reason"]])) for entry in header["skipped"]),
        notes=_texts(header["notes"]),
    )


def _places(numbers: npt.NDArray[Any], shape: tuple[int, ...], limit: int) -> Column:
    if numbers.dtype != np.int32 or numbers.shape != shape or not numbers.size:
        raise ValueError(f"numbers of shape {list(numbers.shape)}, expected {list(shape)}")
    if numbers.min() < 0 or numbers.max() >= limit:
        raise ValueError(f"numbers from {numbers.min()} to {numbers.max()}, expected 0 … {limit - 1}")
    return numbers


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("no list of texts")
    return tuple(values)
