"""Order, packing and batches: values that must never change, and shapes."""

import numpy as np
import pytest

from indextts_job.data.order import Order, derive_seed, mix64, permutation
from indextts_job.data.packing import pack
from indextts_job.model.batch import collate
from tests.support.models import SMALL, random_samples

GOLDEN_EPOCH_0 = [7, 8, 11, 10, 4, 1, 2, 5, 0, 3, 9, 6]
GOLDEN_EPOCH_1 = [0, 5, 10, 7, 9, 11, 1, 4, 3, 2, 6, 8]
GOLDEN_SEED = 2515214529111135941


def test_the_order_has_its_golden_values() -> None:
    # A change here is another version of the order: it breaks the resume of every run that exists.
    assert mix64(0) == 0
    assert mix64(1) == 0x5692161D100B05E5
    assert permutation(1234, 0, 12).tolist() == GOLDEN_EPOCH_0
    assert permutation(1234, 1, 12).tolist() == GOLDEN_EPOCH_1
    order = Order(num_samples=12, seed=1234, global_batch_samples=5)
    assert order.samples_of(2).tolist() == [*GOLDEN_EPOCH_0[10:], *GOLDEN_EPOCH_1[:3]]


@pytest.mark.parametrize(
    ("seed", "epoch", "count"),
    [(0, 0, 500), (1234, 0, 500), (2**63, 999, 500), (0, 0, 50_000)],  # among 50,000 the lower half decides too
)
def test_the_order_is_the_sort_of_a_hash_in_plain_integers(seed: int, epoch: int, count: int) -> None:
    golden = 0x9E3779B97F4A7C15
    key = mix64(mix64(seed + golden) + (epoch + 1) * golden)
    hashes = [mix64(key + (index + 1) * golden) for index in range(count)]
    assert permutation(seed, epoch, count).tolist() == sorted(range(count), key=lambda index: hashes[index])


def test_seeds_depend_on_every_part_and_on_its_place() -> None:
    seeds = {derive_seed(seed, step, batch) for seed in range(5) for step in range(20) for batch in range(5)}
    assert len(seeds) == 500
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(1234, 17, 3) == GOLDEN_SEED
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_epochs_and_seeds_are_unrelated() -> None:
    count = 2000
    orders = [permutation(seed, epoch, count) for seed in range(3) for epoch in range(3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Spearman correlation of independent orders: 1 / sqrt(n) is one standard deviation.
            assert abs(np.corrcoef(np.argsort(one), np.argsort(other))[0, 1]) < 5 / np.sqrt(count)


def test_an_epoch_of_200_hours_is_balanced() -> None:
    order = permutation(7, 3, 200_000)
    halves = (order[:100_000] < 100_000).sum()
    assert abs(int(halves) - 50_000) < 5 * np.sqrt(200_000) / 4


def test_the_epoch_of_a_step_counts_whole_datasets() -> None:
    order = Order(num_samples=100, seed=0, global_batch_samples=32, total_samples=300)
    assert [order.epoch_of(step) for step in (0, 3, 4, 9)] == [(0, 0), (0, 96), (1, 28), (2, 88)]
    assert order.total_steps == 10


def test_indices_are_whole_numbers_behind_the_end_too() -> None:
    order = Order(num_samples=5, seed=0, global_batch_samples=2, total_samples=5)
    assert [order.samples_of(step).dtype for step in range(4)] == [np.int64] * 4
    assert len(order.samples_of(3)) == 0


def test_packing_balances_and_is_deterministic() -> None:
    lengths = [90, 10, 50, 60, 40, 30, 20, 100]
    assert pack(lengths, 200) == [(1, 2, 4, 7), (0, 3, 5, 6)]
    with pytest.raises(ValueError, match="100 tokens does not fit a micro-batch of 99"):
        pack(lengths, 99)


def test_packing_needs_few_bins() -> None:
    random = np.random.default_rng(0)
    for capacity in (1024, 2048, 4096):
        lengths = [int(n) for n in random.integers(150, 850, 256)]
        assert len(pack(lengths, capacity)) <= 1.03 * np.ceil(sum(lengths) / capacity) + 1


def test_a_packed_batch_lays_samples_end_to_end() -> None:
    samples = random_samples(4)
    batch = collate(samples, SMALL)
    sizes = [SMALL.sample_tokens(len(s.text_ids), len(s.codes)) for s in samples]
    assert np.diff(batch.cu_seqlens).tolist() == sizes
    assert batch.num_tokens == sum(sizes) == len(batch.source_rows)
    assert sorted(batch.source_rows) == list(range(batch.num_tokens))
    inputs = np.concatenate([np.full(len(samples) * 34, -1), batch.text_inputs, 1000 + batch.code_inputs])
    for sample, start in zip(samples, batch.cu_seqlens, strict=False):
        rows = inputs[batch.source_rows[start : start + SMALL.sample_tokens(len(sample.text_ids), len(sample.codes))]]
        assert rows.tolist() == [
            *[-1] * 34,
            *[0, *sample.text_ids, 1],
            *[1000 + code for code in [32, *sample.codes]],
        ]
    # Text targets are predicted by start and text, code targets by start and codes.
    predicting = [t for s in samples for t in [0, *s.text_ids]] + [1000 + c for s in samples for c in [32, *s.codes]]
    assert inputs[batch.source_rows[batch.target_rows]].tolist() == predicting
    assert batch.packed_rows[batch.source_rows].tolist() == list(range(batch.num_tokens))
    places = np.full(batch.num_tokens, len(predicting))
    places[batch.target_rows] = np.arange(len(predicting))
    assert batch.target_of_row.tolist() == places.tolist()
    assert batch.text_targets.tolist() == [t for s in samples for t in [*s.text_ids, 1]]
    assert batch.code_targets.tolist() == [c for s in samples for c in [*s.codes, 33]]
