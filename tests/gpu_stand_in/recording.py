"""Counts what the host asks the stand-in for. For processes that run under it."""

import contextlib
import ctypes
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

LAUNCHES = ("kernel", "gemm", "memset")
"""What occupies the card and costs the host a call."""
_library = ctypes.CDLL(None)  # what is preloaded, is in the process itself


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the host."""

    kind: str
    """As `KINDS` in `library/record.c`."""
    name: str
    amount: float
    """Operations of a GEMM, bytes of a copy or an allocation, blocks of a kernel."""
    type: int
    """Of a GEMM's inputs, as cudaDataType."""
    part: int
    """Which part of the work it belongs to; 0 = none that is counted apart."""


@dataclass(frozen=True, slots=True)
class Record:
    """The calls of some work, in their order."""

    calls: Sequence[Call]

    def launches(self, part: int | None = None) -> int:
        """Kernels, GEMMs and memsets.

        Args:
            part: Only those of this part of the work; None = all.
        """
        return sum(call.kind in LAUNCHES and part in (None, call.part) for call in self.calls)

    def count(self, kind: str) -> int:
        """Calls of one kind."""
        return sum(call.kind == kind for call in self.calls)

    def amount(self, kind: str) -> float:
        """Sum over the calls of one kind."""
        return sum(call.amount for call in self.calls if call.kind == kind)

    def between_marks(self) -> "Record":
        """The calls between the first mark and the last one."""
        marks = [place for place, call in enumerate(self.calls) if call.kind == "mark"]
        return Record(self.calls[marks[0] : marks[-1]])

    def most_launched(self, count: int) -> list[tuple[str, int]]:
        """Names of kernels and GEMMs with their numbers."""
        return Counter(call.name for call in self.calls if call.kind in LAUNCHES).most_common(count)


def seen(work: Callable[[], object]) -> Record:
    """The calls of some work."""
    torch.cuda.synchronize()
    _library.stand_in_start()
    try:
        work()
    finally:
        _library.stand_in_stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record"
        if _library.stand_in_write(str(path).encode()):
            raise OSError(f"{path} was not written")
        lines = path.read_text(encoding="utf-8").splitlines()
    return Record([_call(*line.split("\t")) for line in lines])


def _call(kind: str, name: str, amount: str, type_: str, part: str) -> Call:
    return Call(kind, name, float(amount), int(type_), int(part))


def mark() -> None:
    """Put a mark into the record."""
    _library.stand_in_mark()


@contextlib.contextmanager
def part(owner: object, function: str, number: int) -> Iterator[None]:
    """Count the calls of a function apart, and those of its backward pass.

    The function is called as it is. Its backward pass begins when the gradient of one of its results is there, and ends
    when the gradient of its first argument is. Gradients of weights are added up in between: autograd does that before
    anything else.

    Args:
        owner: The module or class that the function is looked up in.
        function: Its name. Its first argument is a tensor, and is not a leaf.
        number: Of the part, from 1.
    """
    real = getattr(owner, function)

    def counted(first: torch.Tensor, *further: Any, **named: Any) -> Any:
        if first.requires_grad:
            first.register_hook(_enter(0))
        _library.stand_in_part(number)
        try:
            results = real(first, *further, **named)
        finally:
            _library.stand_in_part(0)
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, torch.Tensor) and result.requires_grad:
                result.register_hook(_enter(number))
        return results

    with mock.patch.object(owner, function, counted):
        yield


def _enter(number: int) -> Callable[[torch.Tensor], None]:
    def hook(_gradient: torch.Tensor) -> None:
        _library.stand_in_part(number)

    return hook
