"""The prefetcher hands over in order what `build` makes, whatever happens."""

import threading

import numpy as np
import pytest

from indextts_job.data import loader
from indextts_job.data.dataset import Dataset
from indextts_job.data.loader import Prefetcher, step_batches
from indextts_job.data.order import Order
from indextts_job.data.packing import Cut, pack
from indextts_job.model.config import ConformerConfig, GPTConfig
from indextts_job.model.versions import V2_0
from tests.support.held_data import held

_CONFORMER = ConformerConfig(output_size=8, linear_units=8, attention_heads=1, num_blocks=1)
GPT = GPTConfig(
    **{"model_dim": 4, "layers": 1, "heads": 1, "max_text_tokens": 20, "max_mel_tokens": 40},
    **{"number_text_tokens": 50, "number_mel_codes": 34, "start_mel_token": 32, "stop_mel_token": 33},
    **{"start_text_token": 0, "stop_text_token": 1},
    condition_module=_CONFORMER,
    emo_condition_module=_CONFORMER,
    version=V2_0,
)


def test_results_come_in_order_and_each_once() -> None:
    built: list[int] = []

    def build(step: int) -> int:
        built.append(step)
        return step * step

    with Prefetcher(build, range(3, 50)) as prefetcher:
        assert [prefetcher.get(step) for step in range(3, 50)] == [step * step for step in range(3, 50)]
    assert built == list(range(3, 50))


def test_it_runs_ahead_by_a_bounded_number_of_steps() -> None:
    reached, too_far = threading.Event(), threading.Event()
    built: list[int] = []

    def build(step: int) -> int:
        built.append(step)
        if step == 3:
            reached.set()
        if step == 4:
            too_far.set()
        return step

    with Prefetcher(build, range(100)) as prefetcher:
        prefetcher.get(0)
        assert reached.wait(10)  # one handed over, two waiting, one in hand
        assert not too_far.wait(0.2)
        assert built == [0, 1, 2, 3]


def test_an_error_arrives_at_the_step_that_caused_it() -> None:
    def build(step: int) -> int:
        if step == 2:
            raise KeyError("step two")
        return step

    with Prefetcher(build, range(10)) as prefetcher:
        assert [prefetcher.get(0), prefetcher.get(1)] == [0, 1]
        with pytest.raises(KeyError, match="step two"):
            prefetcher.get(2)


def test_leaving_does_not_wait_for_a_read_that_hangs() -> None:
    """The exit of a stopped attempt is prompt: the thread ends with the process."""
    hangs, leaves = threading.Event(), threading.Event()

    def build(step: int) -> int:
        hangs.set()
        leaves.wait(30)
        return step

    with Prefetcher(build, range(10)):
        assert hangs.wait(10)
    leaves.set()  # reached although `build` still hung


def test_a_stop_ends_the_wait_for_a_read_that_hangs() -> None:
    leaves = threading.Event()
    asked = iter([False, False, True])
    with Prefetcher(lambda _step: leaves.wait(30), range(10)) as prefetcher:
        assert prefetcher.get(0, lambda: next(asked)) is None
        leaves.set()


def test_what_is_ready_is_handed_over_in_spite_of_a_stop() -> None:
    with Prefetcher(lambda step: step + 1, range(10)) as prefetcher:
        assert prefetcher.get(0) == 1
        ready = threading.Event()
        while prefetcher._ready.empty():
            ready.wait(0.01)
        assert prefetcher.get(1, lambda: True) == 2


def test_a_restart_builds_again_from_the_step_that_is_asked_for() -> None:
    factor = [1]
    with Prefetcher(lambda step: step * factor[0], range(10)) as prefetcher:
        assert [prefetcher.get(0), prefetcher.get(1)] == [0, 1]
        factor[0] = 100
        prefetcher.restart(2)
        assert [prefetcher.get(2), prefetcher.get(3)] == [200, 300]


def test_a_long_wait_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LONG_WAIT_S", 0.0)
    told: list[str] = []
    asked = iter([False, False, False, True])
    leaves = threading.Event()
    with Prefetcher(lambda _step: leaves.wait(30), range(10)) as prefetcher:
        assert prefetcher.get(0, lambda: next(asked), lambda: told.append("waits")) is None
        leaves.set()
    assert told == ["waits"]


def test_steps_out_of_order_are_refused() -> None:
    with Prefetcher(lambda step: step, range(10)) as prefetcher, pytest.raises(LookupError):
        prefetcher.get(5)


def dataset_of(lengths: list[tuple[int, int]]) -> Dataset:
    """Samples of so many text tokens and codes; each holds its number."""

    return held(
        [
            (
                np.full(text, 3 + number, np.int32),
                np.full(codes, 3 + number, np.uint16),
                np.full((32, GPT.model_dim), number, np.float32),
                np.full(GPT.model_dim, number, np.float32),
            )
            for number, (text, codes) in enumerate(lengths)
        ]
    )


def test_a_step_holds_the_samples_of_the_order_in_the_bins_of_the_cut() -> None:
    # Tokens: 34 and text + 2 and codes + 1, so 40, 60, 50, 55, 47, 45.
    dataset = dataset_of([(1, 2), (3, 20), (8, 5), (10, 8), (4, 6), (2, 6)])
    order = Order(num_samples=6, seed=1, global_batch_samples=4)
    tokens = [40, 60, 50, 55, 47, 45]
    for step in range(3):  # the second crosses the edge of an epoch, and may hold a sample twice
        wanted = order.samples_of(step).tolist()
        for world_size, rank in ((1, 0), (2, 0), (2, 1)):
            bins = pack([tokens[index] for index in wanted], 110, world_size)
            expected = [[wanted[slot] for slot in slots] for slots in bins[rank::world_size]]
            batches = step_batches(
                dataset, order, GPT, Cut(capacity_tokens=110, rank=rank, world_size=world_size), step
            )
            assert [batch.sample_indices.tolist() for batch in batches] == expected
            for batch, inside in zip(batches, expected, strict=True):
                assert batch.sample_ids == tuple(f"sample-{index}" for index in inside)
                assert np.diff(batch.cu_seqlens).tolist() == [tokens[index] for index in inside]
                assert batch.emotion[:, 0].tolist() == inside
                assert batch.condition[:, 0, 0].tolist() == inside
                assert set(batch.text_targets.tolist()) == {1, *(3 + index for index in inside)}


def test_a_rank_with_nothing_to_do_has_an_empty_micro_batch() -> None:
    dataset = dataset_of([(1, 2)])
    order = Order(num_samples=1, seed=1, global_batch_samples=1)
    sizes = []
    for rank in range(3):
        (batch,) = step_batches(dataset, order, GPT, Cut(capacity_tokens=50, rank=rank, world_size=3), 0)
        sizes.append(batch.num_samples)
    assert sizes == [1, 0, 0]


def test_what_was_built_before_a_restart_is_not_handed_over() -> None:
    """A build that hung when everything changed comes to its end later."""
    hangs, leaves, version = threading.Event(), threading.Event(), ["old"]

    def build(step: int) -> str:
        made = f"{version[0]} {step}"
        if made == "old 0":
            hangs.set()
            assert leaves.wait(30)
        return made

    with Prefetcher(build, range(10)) as prefetcher:
        assert hangs.wait(10)
        version[0] = "new"
        prefetcher.restart(0)
        leaves.set()
        assert [prefetcher.get(step) for step in range(5)] == [f"new {step}" for step in range(5)]


def test_a_thread_that_nobody_reads_from_any_more_ends() -> None:
    before = set(threading.enumerate())
    with Prefetcher(lambda step: step, range(100), depth=1) as prefetcher:
        assert prefetcher.get(0) == 0
        (thread,) = set(threading.enumerate()) - before
        assert (thread.name, thread.daemon) == ("prefetch", True)
        prefetcher.restart(1)
        thread.join(10)
        assert not thread.is_alive()
        (second,) = set(threading.enumerate()) - before
        assert prefetcher.get(1) == 1
    second.join(10)
    assert not second.is_alive()


def test_the_thread_ends_with_the_steps_and_with_an_error() -> None:
    before = set(threading.enumerate())
    with Prefetcher(lambda step: step, range(2), depth=5) as prefetcher:
        assert [prefetcher.get(step) for step in range(2)] == [0, 1]
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
            assert not thread.is_alive()
    built: list[int] = []

    def fail(step: int) -> int:
        built.append(step)
        raise ValueError(step)

    with Prefetcher(fail, range(5)) as failing:
        with pytest.raises(ValueError, match="0"):
            failing.get(0)
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
    assert built == [0]


def test_the_message_of_a_step_out_of_order_says_which_comes_next() -> None:
    with (
        Prefetcher(lambda step: step, range(3, 10)) as prefetcher,
        pytest.raises(LookupError, match=r"^step 5 was asked for, 3 comes next$"),
    ):
        prefetcher.get(5)
