"""Copies of the tensors that a save writes, so that training may change the state while a thread writes it.

They lie in one buffer as the objects that are sent: nothing is serialised behind them.

On a GPU the copy runs beside the training: the next forward and backward passes only read what is copied, so that not
before the next update anything has to wait, and then only the device.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from indextts_job.checkpoint.object_layout import Draft, ObjectLayout, drafts, layouts, ranges
from indextts_job.checkpoint.tensor_names import BASE


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies that may still be under way."""

    objects: list[Draft]
    """The copies, as the objects of a checkpoint."""
    copies: Mapping[str, Tensor]
    """The copies by full name, as parts of those objects; without the base, which is not copied."""
    complete: Callable[[], None]
    """Returns when all of them are complete. Called by the thread that reads them."""


@dataclass(frozen=True, slots=True)
class _Places:
    """The objects of a save in the buffer, with their headers written."""

    objects: Sequence[ObjectLayout]
    buffer: Tensor
    contents: Sequence[Tensor]
    """Each [bytes of the object], uint8."""
    views: Mapping[str, Tensor]
    """The copies by full name."""

    @classmethod
    def of(cls, objects: Sequence[ObjectLayout], buffer: Tensor) -> Self:
        contents = [buffer[begin:end] for begin, end in ranges(objects)]
        views: dict[str, Tensor] = {}
        for layout, content in zip(objects, contents, strict=True):
            layout.write_header(content)
            views |= {name: place.view(content) for name, place in layout.places.items()}
        return cls(objects, buffer, contents, views)


class HostCopies:
    """One buffer on the host, reused by every save: allocating fresh memory costs more than the copy itself.

    At most one save is in flight, so one buffer is enough.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._unregister: Callable[[], object] = _nothing
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        self._planned: tuple[list[list[tuple[str, torch.dtype, torch.Size]]], list[ObjectLayout]] | None = None
        self._places: _Places | None = None

    def reserve(self, groups: Sequence[Mapping[str, Tensor]]) -> None:
        """Allocate the buffer for copies of these tensors. To lock 6 GB of memory for a GPU takes seconds.

        Args:
            groups: As for `of`.
        """
        self._allocate(groups, self._layouts(_changing(groups)))

    def _allocate(self, groups: Sequence[Mapping[str, Tensor]], objects: Sequence[ObjectLayout]) -> None:
        size = max((end for _, end in ranges(objects)), default=0)
        with self._lock:
            # A first checkpoint without moments is smaller than those that follow.
            if len(self._buffer) >= size:
                return
            self._unregister()
            self._buffer = torch.empty(size, dtype=torch.uint8)
            # Registered and not allocated as pinned memory, which torch rounds up to a power of two.
            device = _gpu_of(_changing(groups))
            if device is not None and _registered(self._buffer, device):
                # Before the memory is freed, even if this object is: whatever came to lie at these addresses next
                # would be copied to the GPU from the old pages.
                self._unregister = weakref.finalize(self, _unregister, self._buffer.data_ptr())

    def of(self, groups: Sequence[Mapping[str, Tensor]], optimizer: torch.optim.Optimizer | None = None) -> Snapshot:
        """Copy tensors to the host. Behind this call they may be changed by an update of the optimizer.

        Args:
            groups: Tensors by full name, on any device; those of different groups never share an object. Those under
                `base/` never change and are not copied.
            optimizer: Changes them on a GPU: its next update waits for the copies. None = the call returns when they
                are complete.
        """
        changing = _changing(groups)
        objects = self._layouts(changing)
        self._allocate(groups, objects)
        places = self._placed(objects)
        tensors = {name: value for group in changing for name, value in group.items()}
        complete = self._copied(tensors, places.views, optimizer)
        copied = [Draft(layout, _content(content)) for layout, content in zip(objects, places.contents, strict=True)]
        # Training never changes the base tensors, so the thread may read them directly.
        fixed = [{name: value for name, value in group.items() if name.startswith(BASE)} for group in groups]
        return Snapshot([*copied, *drafts(fixed)], places.views, complete)

    def _placed(self, objects: Sequence[ObjectLayout]) -> _Places:
        """The places of these objects; those of the save before where they are the same, which saves milliseconds."""
        places, buffer = self._places, self._buffer
        if places is None or places.objects is not objects or places.buffer is not buffer:
            self._places = places = _Places.of(objects, buffer)
        return places

    def _layouts(self, groups: Sequence[Mapping[str, Tensor]]) -> list[ObjectLayout]:
        """The objects of these tensors; planned again only when something but their values has changed."""
        form = [[(name, tensor.dtype, tensor.shape) for name, tensor in group.items()] for group in groups]
        # One value of both: `reserve` may be in another thread.
        planned = self._planned
        if planned is None or planned[0] != form:
            self._planned = planned = (form, [layout for group in groups for layout in layouts(group)])
        return planned[1]

    def _copied(
        self, tensors: Mapping[str, Tensor], views: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None
    ) -> Callable[[], None]:
        device = _gpu_of([tensors])
        if device is None:
            for key, tensor in tensors.items():
                views[key].copy_(tensor.detach())
            return _nothing
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for key, tensor in tensors.items():
                views[key].copy_(tensor.detach(), non_blocking=True)
        done: torch.cuda.Event = self._stream.record_event()
        if optimizer is None:
            done.synchronize()
        else:
            _before_the_next_update(optimizer, done.wait)
        complete: Callable[[], None] = done.synchronize
        return complete


def _changing(groups: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The groups without the tensors that never change."""
    return [{name: value for name, value in group.items() if not name.startswith(BASE)} for group in groups]


def _gpu_of(groups: Sequence[Mapping[str, Tensor]]) -> torch.device | None:
    return next((tensor.device for group in groups for tensor in group.values() if tensor.is_cuda), None)


def _content(content: Tensor) -> Callable[[], memoryview]:
    return lambda: content.numpy().data


def _registered(buffer: Tensor, device: torch.device) -> bool:
    """Lock memory, so that the GPU copies into it by itself; False where the system does not allow that much.

    Then the copies are slower, and right all the same.
    """
    # The current GPU is a property of the thread, the first one in a new thread: every rank would occupy memory there.
    with contextlib.suppress(RuntimeError), torch.cuda.device(device):
        return int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), len(buffer), 0)) == 0  # type: ignore[no-untyped-call]
    return False


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def _before_the_next_update(optimizer: torch.optim.Optimizer, wait: Callable[[], None]) -> None:
    """Let the device wait once, in the stream of the update, before the optimizer changes anything."""

    def once(*_arguments: object) -> None:
        handle.remove()
        wait()

    handle = optimizer.register_step_pre_hook(once)


def _nothing() -> None:
    """On a CPU the copies are complete when the call returns."""
