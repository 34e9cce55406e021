"""Many short texts as two arrays: a list of a million strings would take ten times the memory."""

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from indextts_job.hashing import integrity_digest

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
_KEY_BYTES = 16
AT_A_TIME = 2**14
"""Number of texts that are moved at a time."""


class Texts:
    """Texts in UTF-8, end to end.

    Args:
        values: The bytes of all of them.
        offsets: [texts + 1] where each begins, and where the last one ends.
    """

    __slots__ = ("_offsets", "_values")

    def __init__(self, values: Bytes, offsets: Offsets) -> None:
        self._values = values
        self._offsets = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """These texts."""
        growing = GrowingTexts()
        for text in texts:
            growing.add(text)
        return growing.texts()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        content: bytes = self._values[self._offsets[index] : self._offsets[index + 1]].tobytes()
        return content.decode()

    def between(self, start: int, stop: int) -> tuple[Bytes, Offsets]:
        """Bytes and offsets of the texts [start, stop); the first one begins at 0."""
        first = self._offsets[start]
        return self._values[first : self._offsets[stop]], self._offsets[start : stop + 1] - first

    def taken(self, indices: npt.NDArray[np.integer]) -> "Texts":
        """The texts at these places, in this order."""
        begins, sizes = self._offsets[indices], np.diff(self._offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        values = np.empty(offsets[-1], np.uint8)
        # The places of the bytes take sixteen times their memory, so they are not computed for all at once.
        for start in range(0, len(indices), AT_A_TIME):
            part = slice(start, start + AT_A_TIME)
            first, stop = offsets[start], offsets[min(start + AT_A_TIME, len(indices))]
            places = np.arange(first, stop) + np.repeat(begins[part] - offsets[:-1][part], sizes[part])
            values[first:stop] = self._values[places]
        return Texts(values, offsets)

    def arrays(self, name: str) -> dict[str, npt.NDArray[np.generic]]:
        """The two arrays, to be stored; `stored_texts` takes them back."""
        return {f"{name}_values": self._values, f"{name}_offsets": self._offsets}

    @property
    def nbytes(self) -> int:
        """Memory of the two arrays."""
        return int(self._values.nbytes + self._offsets.nbytes)


def stored_texts(values: npt.NDArray[np.generic], offsets: npt.NDArray[np.generic], name: str) -> Texts:
    """Texts from two arrays out of a file.

    Raises:
        ValueError: The arrays are no texts in UTF-8.
    """
    if values.ndim != 1 or values.dtype != np.uint8:
        raise ValueError(f"{name}: the values are no list of bytes")
    content, cuts = values.astype(np.uint8, copy=False), offsets.astype(np.int64, copy=False)
    if offsets.ndim != 1 or offsets.dtype != np.int64 or not _cuts(cuts, len(content)):
        raise ValueError(f"{name}: the offsets do not cut {len(values)} bytes into texts")
    content.tobytes().decode()
    # The whole is UTF-8. So is each text if none begins in the middle of a character.
    begins = cuts[cuts < len(values)]
    if ((content[begins] & 0xC0) == 0x80).any():
        raise ValueError(f"{name}: a text begins in the middle of a character")
    return Texts(content, cuts)


def _cuts(offsets: Offsets, size: int) -> bool:
    """Whether offsets [texts + 1] cut so many bytes into texts, which may be empty."""
    covers = len(offsets) >= 1 and offsets[0] == 0 and offsets[-1] == size
    return bool(covers and (offsets[1:] >= offsets[:-1]).all())


class GrowingTexts:
    """Texts to which more can be added."""

    def __init__(self) -> None:
        self._values = bytearray()
        self._ends = array("q", [0])

    def add(self, text: str) -> None:
        """Add a text, which must have a UTF-8 encoding."""
        self._values += text.encode()
        self._ends.append(len(self._values))

    def texts(self) -> Texts:
        """All texts so far; nothing can be added any more."""
        return Texts(np.frombuffer(self._values, np.uint8), np.frombuffer(self._ends, np.int64))


class Paths:
    """Paths or URLs, with each folder once: a dataset has a handful of folders.

    Args:
        folders: Each with the slash at its end; empty for a path without a folder.
        folder: [paths] the folder of each, as its place among `folders`.
        names: [paths] what follows the folder.
    """

    __slots__ = ("folder", "folders", "names")

    def __init__(self, folders: tuple[str, ...], folder: npt.NDArray[np.int32], names: Texts) -> None:
        self.folders = folders
        self.folder = folder
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.folders[int(self.folder[index])] + self.names[index]


class GrowingPaths:
    """Paths to which more can be added; each is kept once."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._folder = array("i")
        self._names = GrowingTexts()
        self._keys = bytearray()

    def add(self, path: str) -> None:
        """Add a path."""
        name = path.rpartition("/")[2]
        folder = path[: len(path) - len(name)]
        self._folder.append(self._folders.setdefault(folder, len(self._folders)))
        self._names.add(name)
        # Half a million strings in a dictionary take more memory than everything else of a dataset.
        self._keys += integrity_digest(path.encode())

    def paths(self) -> tuple[Paths, npt.NDArray[np.int32]]:
        """The distinct paths, in the order of their first use, and for each added path its place among them."""
        keys = np.frombuffer(self._keys, np.uint8).reshape(-1, _KEY_BYTES)
        first, rows = distinct(keys)
        return Paths(
            tuple(self._folders), np.frombuffer(self._folder, np.int32)[first], self._names.texts().taken(first)
        ), rows


def distinct(keys: Bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Find equal keys.

    Args:
        keys: [things, 16] digests.

    Returns:
        Where each distinct key stands first, ascending, and for each of the given keys its place among these.
    """
    halves = np.ascontiguousarray(keys).view(np.uint64)
    order = np.lexsort((halves[:, 0], halves[:, 1]))  # stable: the first of equal keys comes first
    ordered = halves[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[begins]
    by_place = np.argsort(first)
    places = np.empty(len(first), np.int32)
    places[by_place] = np.arange(len(first), dtype=np.int32)
    rows = np.empty(len(order), np.int32)
    rows[order] = places[np.cumsum(begins) - 1]
    return first[by_place], rows
