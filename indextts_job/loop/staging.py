"""Copies of the tensors that a save writes, so that training may change the state while a thread writes it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from indextts_job.checkpoint.tensor_names import BASE


class HostCopies:
    """Buffers on the host, reused by every save: allocating fresh memory costs more than the copy itself.

    At most one save is in flight, so one set of buffers is enough.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def of(self, groups: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Copy tensors to the host; returns when every copy is complete.

        Args:
            groups: Tensors by full name, on any device. Those under `base/` never change and are not copied.

        Returns:
            The same groups and names.
        """
        copies = [{key: self._copied(key, tensor) for key, tensor in group.items()} for group in groups]
        if any(tensor.is_cuda for group in groups for tensor in group.values()):
            torch.cuda.synchronize()  # the copies from a GPU run in parallel until here
        return copies

    def _copied(self, key: str, tensor: Tensor) -> Tensor:
        if key.startswith(BASE):
            return tensor  # training never changes it, so the thread may read it directly
        return self._buffer(key, tensor).copy_(tensor.detach(), non_blocking=True)

    def _buffer(self, key: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            # Only a copy into pinned memory runs in parallel with others.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer
