"""The prefetcher hands over in order what `build` makes, whatever happens."""

import threading

import pytest

from indextts_job.data.loader import Prefetcher


def test_results_come_in_order_and_each_once() -> None:
    built: list[int] = []

    def build(step: int) -> int:
        built.append(step)
        return step * step

    with Prefetcher(build, range(3, 50)) as prefetcher:
        assert [prefetcher.get(step) for step in range(3, 50)] == [step * step for step in range(3, 50)]
    assert built == list(range(3, 50))


def test_it_runs_ahead_by_a_bounded_number_of_steps() -> None:
    reached = threading.Event()
    built: list[int] = []

    def build(step: int) -> int:
        built.append(step)
        if step == 3:
            reached.set()
        return step

    with Prefetcher(build, range(100), depth=2) as prefetcher:
        prefetcher.get(0)
        assert reached.wait(10)  # one handed over, two waiting, one in hand
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


def test_leaving_early_does_not_hang() -> None:
    with Prefetcher(lambda step: step, range(10**9)) as prefetcher:
        prefetcher.get(0)
    assert not prefetcher._thread.is_alive()


def test_steps_out_of_order_are_refused() -> None:
    with Prefetcher(lambda step: step, range(10)) as prefetcher, pytest.raises(LookupError):
        prefetcher.get(5)
