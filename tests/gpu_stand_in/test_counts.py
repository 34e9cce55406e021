"""How often a training step calls the card and waits for it, at the released model's size. Counts, not times."""

from functools import cache

import pytest

from tests.gpu_stand_in.cards import H100, L4, Card
from tests.gpu_stand_in.counts import Counts, Way, counted
from tests.gpu_stand_in.environment import StandIn

LAUNCHES = 2_386
"""Of a step of 32 utterances in one micro-batch with one variable-length kernel per layer, deterministic: counted with
FlashAttention's operator patched in."""
ALLOWED = 1.1


@cache
def counts(stand_in: StandIn, card: Card, way: Way) -> Counts:
    return counted(stand_in, card, way)


def test_a_step_launches_a_bounded_number_of_kernels(stand_in: StandIn) -> None:
    found = counts(stand_in, H100, Way())
    assert found.micro_batches == 1
    assert found.launches - found.head_launches <= ALLOWED * LAUNCHES, found


@pytest.mark.parametrize(("card", "capacity_tokens"), [(H100, Way().capacity_tokens), (L4, 4096)], ids=["one", "four"])
def test_the_host_waits_twice_in_a_step_and_never_between_micro_batches(
    stand_in: StandIn, card: Card, capacity_tokens: int
) -> None:
    """Once for the losses and once for the norm of the gradient."""
    found = counts(stand_in, card, Way(capacity_tokens=capacity_tokens))
    assert found.waits <= 2, found
    assert found.waits_in_loop == found.pageable_in_loop == 0, found


def test_a_step_allocates_nothing_that_the_step_before_has_had(stand_in: StandIn) -> None:
    """cudaMalloc waits for the card. The cache of torch's allocator makes it needless, if tensors keep their sizes."""
    assert counts(stand_in, H100, Way()).allocations == 0


def test_the_host_launches_no_more_for_longer_samples(stand_in: StandIn) -> None:
    """Launches depend on layers and micro-batches: a step in four has less than four times those of one."""
    one, four = counts(stand_in, H100, Way()), counts(stand_in, L4, Way(capacity_tokens=4096))
    assert four.micro_batches == 4
    assert four.launches < four.micro_batches * one.launches
