"""The prefetcher hands over in order what `build` makes, whatever happens."""

import threading

import pytest

from indextts_job.data import loader
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
