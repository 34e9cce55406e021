"""Copies of a state on the host: theirs alone, of any type, and in memory that is used again."""

import pytest
import torch
from torch import Tensor

from indextts_job.loop.staging import HostCopies, Snapshot

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64]


def tensors_of(snapshot: Snapshot) -> dict[str, Tensor]:
    return {name: tensor for draft in snapshot.objects for name, tensor in draft.tensors().items()}


@pytest.mark.parametrize("dtype", TYPES)
def test_a_copy_has_the_values_the_shape_and_the_type_and_none_of_the_memory(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    snapshot, expected = HostCopies().of([{"model/a": tensor}]), tensor.clone()
    tensor.zero_()
    snapshot.complete()
    copies = tensors_of(snapshot)
    assert copies["model/a"].dtype == dtype
    assert torch.equal(copies["model/a"], expected)


def test_groups_have_objects_of_their_own_and_the_base_is_read_where_it_lies() -> None:
    base, weight = torch.ones(3), torch.ones(2, requires_grad=True)
    snapshot = HostCopies().of([{"model/a": weight}, {}, {"base/a": base, "model/base/b": torch.ones(1)}])
    named = [sorted(draft.layout.places) for draft in snapshot.objects]
    assert named == [["model/a"], ["model/base/b"], ["base/a"]]
    base.fill_(2)
    with torch.no_grad():
        weight.fill_(2)
    copies = tensors_of(snapshot)
    assert copies["base/a"].tolist() == [2.0] * 3
    assert copies["model/a"].tolist() == [1.0] * 2


@pytest.mark.parametrize("other", [torch.ones(2, 3).double(), torch.ones(3, 2), torch.ones(40)])
def test_copies_of_another_form_are_right_too(other: torch.Tensor) -> None:
    copies = HostCopies()
    copies.of([{"a": torch.zeros(2, 3), "b": torch.full((5,), 7.0)}])
    changed = tensors_of(copies.of([{"a": other, "b": torch.full((3,), 8.0)}]))
    assert changed["a"].dtype == other.dtype
    assert torch.equal(changed["a"], other)
    assert changed["b"].tolist() == [8.0] * 3


def test_the_memory_is_taken_once_and_may_be_taken_ahead() -> None:
    copies = HostCopies()
    state = [{"a": torch.zeros(2, 3), "b": torch.zeros(70)}, {"base/c": torch.zeros(10)}]
    copies.reserve(state)
    first, fewer, again = (tensors_of(copies.of(groups)) for groups in (state, [{"a": torch.ones(2, 3)}], state))
    assert first["b"].data_ptr() == again["b"].data_ptr()
    assert abs(first["a"].data_ptr() - fewer["a"].data_ptr()) < 1024
    # No copy reaches into another.
    assert first["b"].data_ptr() >= first["a"].data_ptr() + first["a"].nbytes
