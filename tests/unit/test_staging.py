"""Copies of a state on the host: theirs alone, of any type, and in memory that is used again."""

import pytest
import torch

from indextts_job.loop.staging import HostCopies

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_copy_has_the_values_the_shape_and_the_type_and_none_of_the_memory(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    ((copies,), expected) = HostCopies().of([{"model/a": tensor}]), tensor.clone()
    tensor.zero_()
    assert copies["model/a"].dtype == dtype
    assert torch.equal(copies["model/a"], expected)


def test_groups_and_names_stay_and_the_base_is_not_copied() -> None:
    base, weight = torch.ones(3), torch.ones(2, requires_grad=True)
    copies = HostCopies().of([{"model/a": weight}, {}, {"base/a": base, "model/base/b": torch.ones(1)}])
    assert [list(group) for group in copies] == [["model/a"], [], ["base/a", "model/base/b"]]
    assert copies[2]["base/a"] is base
    assert not copies[0]["model/a"].requires_grad


@pytest.mark.parametrize("other", [torch.ones(2, 3).double(), torch.ones(3, 2), torch.ones(6)])
def test_memory_is_used_again_only_for_what_has_the_same_form(other: torch.Tensor) -> None:
    copies = HostCopies()
    (first,), (second,) = copies.of([{"a": torch.zeros(2, 3)}]), copies.of([{"a": torch.ones(2, 3)}])
    assert first["a"].data_ptr() == second["a"].data_ptr()
    (changed,) = copies.of([{"a": other}])
    assert changed["a"].dtype == other.dtype
    assert torch.equal(changed["a"], other)
    assert changed["a"].data_ptr() != second["a"].data_ptr()
