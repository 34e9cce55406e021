"""Which rank was lost: the one that does not answer, whoever asks and whoever ends first."""

from collections.abc import Iterator, Sequence

import pytest

from indextts_job.training import roll_call
from indextts_job.training.roll_call import RollCall
from tests.support.waiting import wait_until

LOOK_S = 0.05


class Board:
    """The store of all ranks, in memory; it can be taken away."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.gone = False

    def _reach(self) -> None:
        if self.gone:
            raise RuntimeError("connection refused, says the test")

    def set(self, key: str, value: str, /) -> None:
        self._reach()
        self.values[key] = value

    def get(self, key: str, /) -> bytes:
        self._reach()
        return self.values[key].encode()

    def check(self, keys: list[str], /) -> bool:
        self._reach()
        return all(key in self.values for key in keys)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(roll_call, "ANSWER_S", 1.0)
    return Board()


@pytest.fixture
def ranks(board: Board) -> Iterator[Sequence[RollCall]]:
    calls = [RollCall(board, rank, 4, LOOK_S) for rank in range(4)]
    yield calls
    for call in calls:
        call.close()


def test_who_does_not_answer_is_lost(ranks: Sequence[RollCall]) -> None:
    ranks[2].close()
    assert ranks[0].missing() == [2]
    assert ranks[0].missing() == [2]


def test_several_may_be_lost(ranks: Sequence[RollCall]) -> None:
    ranks[0].close()
    ranks[3].close()
    assert ranks[1].missing() == [0, 3]


def test_when_all_are_there_nobody_is_named(ranks: Sequence[RollCall]) -> None:
    assert ranks[1].missing() == []
    # It ends now all the same, and takes the others along.
    assert ranks[2].missing() == [1]


def test_who_has_told_and_ended_is_not_taken_for_lost(ranks: Sequence[RollCall]) -> None:
    ranks[2].close()
    assert ranks[1].missing() == [2]
    ranks[1].close()
    assert ranks[3].missing() == [2]


def test_the_finding_is_known_when_its_store_has_ended_with_rank_0(ranks: Sequence[RollCall], board: Board) -> None:
    ranks[2].close()
    assert ranks[0].missing() == [2]
    wait_until(ranks[3]._answering.done, "the finding was read")
    board.gone = True
    assert ranks[3].missing() == [2]


def test_without_its_store_rank_0_is_lost(ranks: Sequence[RollCall], board: Board) -> None:
    board.gone = True
    assert ranks[1].missing() == [0]
    assert ranks[0].missing() == []  # it cannot be itself
    for call in ranks:
        wait_until(call._answering.done, "the thread has ended")
