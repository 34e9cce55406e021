"""Stop requests: what a handler stores, how much time is left, and what is done with it."""

import math
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.preemption.deadline import SAFETY_RATIO, Pace, StopDecision, StopRequest, finishes_in_time
from indextts_job.preemption.signals import STOP_SIGNALS, StopSignals


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signals = StopSignals()
    signals.install()
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_the_deadline_counts_from_the_first_signal(stop: StopSignals, number: signal.Signals) -> None:
    assert stop() is None
    stop.grace_s = 20.0
    os.kill(os.getpid(), number)
    request = stop()
    assert request is not None
    assert request.reason == number.name
    assert request.deadline_at_s == request.requested_at_s + 20.0
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop() == request


def test_ctrl_c_has_no_deadline_and_a_second_one_would_end_the_process(stop: StopSignals) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    request = stop()
    assert request is not None
    assert math.isinf(request.deadline_at_s)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_signal_after_another_still_arms_the_second_ctrl_c(stop: StopSignals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    request = stop()
    assert request is not None
    assert request.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_signal_with_a_deadline_behind_ctrl_c_has_its_deadline(stop: StopSignals) -> None:
    """Somebody pressed Ctrl+C, and then the machine is taken away."""
    stop.grace_s = 20.0
    stop.record(signal.SIGINT, 100.0)
    stop.record(signal.SIGTERM, 130.0)
    stop.record(signal.SIGTERM, 140.0)
    assert stop() == StopRequest("SIGINT", 100.0, 150.0)


PACE = Pace(micro_batch_s=2.0, update_s=1.0, save_s=5.0)


@pytest.mark.parametrize(
    ("now", "left", "finish"),
    [(0.0, 7, True), (0.0, 8, True), (0.0, 9, False), (22.0, 1, False), (18.0, 1, True), (31.0, 0, False)],
)
def test_a_cycle_is_finished_when_it_and_the_save_fit_with_a_margin(now: float, left: int, *, finish: bool) -> None:
    request = StopRequest("SIGTERM", 0.0, 33.0)
    assert finishes_in_time(request, now, left, PACE) == finish


@given(now=st.floats(0, 100), left=st.integers(0, 50), save=st.floats(0, 100))
def test_what_is_finished_would_have_been_finished_with_less_to_do(now: float, left: int, save: float) -> None:
    request = StopRequest("SIGTERM", 0.0, 60.0)
    pace = Pace(micro_batch_s=1.0, update_s=0.1, save_s=save)
    if finishes_in_time(request, now, left + 1, pace):
        assert finishes_in_time(request, now, left, pace)
        assert now + SAFETY_RATIO * save <= 60.0


def decided(clock_s: list[float], pace: Pace, micro_batches: int, left: int) -> str:
    request = StopRequest("SIGTERM", 0.0, 30.0)
    decision = StopDecision(lambda: request, bool, lambda: clock_s.pop(0), pace, micro_batches)
    decision(left)
    return decision.decision


def test_the_first_step_of_an_attempt_decides_by_its_own_micro_batches() -> None:
    """40 micro-batches of 3 s: after two of them it is known that the step does not fit."""
    unknown = Pace(save_s=1.0)
    assert decided([0.0, 6.0, 6.0], unknown, 40, 38) == "discard"
    assert decided([0.0, 6.0, 6.0], unknown, 6, 4) == "finish"


def test_a_slower_pace_that_was_known_before_counts_too() -> None:
    assert decided([0.0, 0.1, 0.1], Pace(micro_batch_s=3.0), 40, 39) == "discard"


def test_without_a_request_nothing_is_decided() -> None:
    decision = StopDecision(lambda: None, bool, lambda: 0.0, Pace(), 4)
    assert not decision(4)
    assert (decision.decision, decision.micro_batches_done) == ("", 0)


def test_the_first_look_says_how_far_the_step_was_and_every_look_decides_again() -> None:
    """The first micro-batches took 1 s each; then one hangs for 20 s, and the deadline comes near."""
    requests = iter([None, *[StopRequest("SIGTERM", 0.0, 100.0)] * 3])
    instants = iter([50.0, 52.0, 52.0, 53.0, 53.0, 73.0, 73.0])
    decision = StopDecision(lambda: next(requests), bool, lambda: next(instants), Pace(save_s=1.0), 10)
    assert not decision(9)
    assert not decision(8)
    assert (decision.decision, decision.micro_batches_done) == ("finish", 2)
    assert not decision(7)
    assert decision(6)
    assert (decision.decision, decision.micro_batches_done) == ("discard", 2)


def test_a_step_that_has_not_begun_knows_no_pace_but_the_one_before() -> None:
    request = StopRequest("SIGTERM", 0.0, 30.0)
    for pace, given_up in ((Pace(micro_batch_s=4.0), False), (Pace(micro_batch_s=6.0), True)):
        assert StopDecision(lambda: request, bool, lambda: 0.0, pace, 4)(4) == given_up


@pytest.mark.parametrize("late", [True, False])
def test_all_ranks_give_up_when_one_has_too_little_time(*, late: bool) -> None:
    said: list[bool] = []

    def on_any_rank(mine: bool) -> bool:
        said.append(mine)
        return late

    decision = StopDecision(lambda: StopRequest("SIGTERM", 0.0, 30.0), on_any_rank, lambda: 0.0, Pace(), 4)
    assert decision(2) == late
    assert said == [False]
    assert decision.decision == ("discard" if late else "finish")
