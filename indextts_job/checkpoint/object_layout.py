"""Tensors in the bytes of an object, which is a safetensors file; planned before a byte is copied.

The layout follows from names, types and shapes alone. So the copies of a save are made into the objects that are sent,
without a serialisation behind them, and equal tensors give equal bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts_job.checkpoint.manifest import StoredTensor
from indextts_job.layout import ALIGNMENT

# Objects of this size are one PUT each: nothing is left half uploaded, and a retry repeats 32 MiB at most.
OBJECT_BYTES = 32 * 2**20
"""Upper bound of one object (a larger tensor is an object of its own): unit of parallel writes and reads."""

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a tensor in the bytes of an object."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    start: int
    """First byte within the object."""
    stop: int
    """Byte behind the last one."""

    def view(self, content: Tensor) -> Tensor:
        """The tensor as a view of the bytes of its object.

        Args:
            content: [bytes] of the object, uint8.
        """
        return content[self.start : self.stop].view(_TYPES[self.dtype]).view(self.shape)

    def in_object(self, key: str) -> StoredTensor:
        """The entry of a manifest.

        Args:
            key: Key of the object.
        """
        return StoredTensor(self.dtype, self.shape, key, self.start, self.stop)


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """The places of some tensors in one object."""

    header: bytes
    """The first bytes of the object: length of the safetensors header, and the header."""
    places: Mapping[str, Place]
    """By name of the tensor."""
    size_bytes: int

    def write_header(self, content: Tensor) -> None:
        """Write the header.

        Args:
            content: [size_bytes] of the object, uint8.
        """
        content[: len(self.header)] = torch.frombuffer(bytearray(self.header), dtype=torch.uint8)

    def filled(self, tensors: Mapping[str, Tensor]) -> memoryview:
        """The object in fresh memory.

        Args:
            tensors: At least those of the layout, by name, on any device.
        """
        content = torch.empty(self.size_bytes, dtype=torch.uint8)
        self.write_header(content)
        for name, place in self.places.items():
            place.view(content).copy_(tensors[name].detach())
        return content.numpy().data


@dataclass(frozen=True, slots=True)
class Draft:
    """An object that is to be written."""

    layout: ObjectLayout
    content: Callable[[], memoryview]
    """Gives its bytes. Asked right before they are written: that bounds the memory."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by name, as views of its bytes."""
        content = torch.frombuffer(self.content(), dtype=torch.uint8)
        return {name: place.view(content) for name, place in self.layout.places.items()}


def drafts(groups: Iterable[Mapping[str, Tensor]]) -> Iterator[Draft]:
    """The objects of tensors; each is made when its content is asked for.

    Args:
        groups: Tensors by full name, on any device; those of different groups never share an object.
    """
    for group in groups:
        for layout in layouts(group):
            yield Draft(layout, _filler(layout, group))


def _filler(layout: ObjectLayout, tensors: Mapping[str, Tensor]) -> Callable[[], memoryview]:
    return lambda: layout.filled(tensors)


def layouts(tensors: Mapping[str, Tensor]) -> list[ObjectLayout]:
    """The objects of one group, of bounded size, cut by name, so that equal groups give equal objects."""
    return [layout_of(part) for part in _parts(tensors)]


def layout_of(tensors: Mapping[str, Tensor]) -> ObjectLayout:
    """All tensors in one object."""
    # The widest types first, as safetensors orders them: each begins at a multiple of its own size. Then by name, so
    # that the order of the mapping does not matter.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    ends: list[int] = [0]
    for name in names:
        ends.append(ends[-1] + tensors[name].nbytes)
    described = {
        name: {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        for name, begin, end in zip(names, ends, ends[1:], strict=False)
    }
    header = json.dumps(described, separators=(",", ":")).encode()
    # Spaces behind the header: then the first tensor begins at a multiple of the alignment, like the object itself.
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    start = 8 + len(header)
    places = {
        name: Place(_NAMES[tensors[name].dtype], tuple(tensors[name].shape), start + begin, start + end)
        for name, begin, end in zip(names, ends, ends[1:], strict=False)
    }
    return ObjectLayout(len(header).to_bytes(8, "little") + header, places, start + ends[-1])


def stored_view(content: npt.NDArray[np.uint8], entry: StoredTensor) -> Tensor:
    """A tensor as a view of the memory that its object was read into, without a copy."""
    return Place(entry.dtype, entry.shape, entry.start, entry.stop).view(torch.from_numpy(content))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    # By name: the cut must not depend on the order of the mapping, or unchanged tensors would get new objects.
    for key in sorted(tensors):
        # A tensor above the bound is an object of its own; tensors are not split.
        if part and size + tensors[key].nbytes > OBJECT_BYTES:
            yield part
            part, size = {}, 0
        part[key] = tensors[key]
        size += tensors[key].nbytes
    if part:
        yield part


def ranges(objects: Sequence[ObjectLayout]) -> list[tuple[int, int]]:
    """First byte and end of each object in one buffer that holds them all, aligned."""
    found, end = [], 0
    for layout in objects:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        end = begin + layout.size_bytes
        found.append((begin, end))
    return found
