"""I1: the order is a permutation without gaps, packing loses nothing, and histories do not matter."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.data.order import Order, permutation
from indextts_job.data.packing import bins_of_rank, pack


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 1000), count=st.integers(1, 3000))
def test_an_epoch_holds_every_sample_once(seed: int, epoch: int, count: int) -> None:
    assert sorted(permutation(seed, epoch, count)) == list(range(count))


@given(samples=st.integers(1, 50), batch=st.integers(1, 60), epochs=st.integers(1, 5), seed=st.integers(0, 100))
def test_steps_cover_the_stream_without_gap_or_repeat(samples: int, batch: int, epochs: int, seed: int) -> None:
    order = Order(num_samples=samples, seed=seed, global_batch_samples=batch, total_samples=samples * epochs)
    steps = [order.samples_of(step) for step in range(order.total_steps)]
    assert all(len(step) == batch for step in steps[:-1])
    assert 0 < len(steps[-1]) <= batch
    assert len(order.samples_of(order.total_steps)) == 0
    stream = np.concatenate(steps)
    for epoch in range(epochs):
        part = stream[epoch * samples : (epoch + 1) * samples]
        assert np.array_equal(part, permutation(seed, epoch, samples))


@given(
    samples=st.integers(1, 40),
    batch=st.integers(1, 20),
    lives=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=12),
)
def test_any_history_of_interruptions_commits_the_same_samples(
    samples: int, batch: int, lives: list[tuple[int, int]]
) -> None:
    order = Order(num_samples=samples, seed=3, global_batch_samples=batch)
    committed: list[int] = []
    step = 0
    for updates, lost in lives:
        # A life applies some updates; a kill loses the last of them, which are not committed.
        kept = max(0, updates - lost)
        for done in range(updates):
            used = order.samples_of(step + done)
            if done < kept:
                committed += used.tolist()
        step += kept
    undisturbed = [int(i) for k in range(step) for i in order.samples_of(k)]
    assert Counter(committed) == Counter(undisturbed)
    assert committed == undisturbed


@given(lengths=st.lists(st.integers(1, 300), max_size=80), spare=st.integers(0, 2000), world_size=st.integers(1, 9))
def test_packing_loses_nothing_and_respects_the_capacity(lengths: list[int], spare: int, world_size: int) -> None:
    capacity = max(lengths, default=1) + spare
    bins = pack(lengths, capacity, world_size)
    assert sorted(slot for slots in bins for slot in slots) == list(range(len(lengths)))
    assert all(sum(lengths[slot] for slot in slots) <= capacity for slots in bins)
    assert len(bins) % world_size == 0
    ranks = [bins_of_rank(bins, rank, world_size) for rank in range(world_size)]
    assert len({len(own) for own in ranks}) == 1
    assert sorted(slots for own in ranks for slots in own) == sorted(bins)
