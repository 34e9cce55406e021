"""How often a training step calls the card and waits for it, at the released model's size. Counts, not times."""

from functools import cache

import pytest

from tests.gpu_stand_in.cards import H100, L4, Card
from tests.gpu_stand_in.counts import Counts, Way, counted
from tests.gpu_stand_in.environment import StandIn

MOST_LAUNCHES = 1_900
"""Of a step of 32 utterances in one micro-batch, deterministic. Counted: 1,829, of them 182 of the heads."""
MOST_IN_HEADS = 200


@cache
def counts(stand_in: StandIn, card: Card, way: Way) -> Counts:
    return counted(stand_in, card, way)


def test_a_step_launches_a_bounded_number_of_kernels(stand_in: StandIn) -> None:
    found = counts(stand_in, H100, Way())
    assert found.micro_batches == 1
    assert found.head_launches <= MOST_IN_HEADS, found
    assert found.launches <= MOST_LAUNCHES, found


@pytest.mark.parametrize(("card", "capacity_tokens"), [(H100, Way().capacity_tokens), (L4, 4096)], ids=["one", "four"])
def test_the_host_waits_once_in_a_step_and_never_between_micro_batches(
    stand_in: StandIn, card: Card, capacity_tokens: int
) -> None:
    """For losses and norm of the gradient together, before it is known whether the update may be done."""
    found = counts(stand_in, card, Way(capacity_tokens=capacity_tokens))
    assert found.waits == 1, found
    assert found.waits_in_loop == found.pageable_in_loop == 0, found


def test_a_step_allocates_nothing_that_the_steps_before_have_had(stand_in: StandIn) -> None:
    """A call for memory waits for the card. torch's cache makes it needless, if tensors keep their sizes."""
    assert counts(stand_in, H100, Way()).allocations == 0


def test_the_host_launches_no_more_for_longer_samples(stand_in: StandIn) -> None:
    """Launches depend on layers and micro-batches: a step in four has less than four times those of one."""
    one, four = counts(stand_in, H100, Way()), counts(stand_in, L4, Way(capacity_tokens=4096))
    assert four.micro_batches == 4
    assert four.launches < four.micro_batches * one.launches
