"""Which checkpoints are current and which may go."""

from hypothesis import given
from hypothesis import strategies as st

from indextts_job.checkpoint.retention import BEST, FINAL, GOOD, KEEP, PREEMPTED, CheckpointName, current, to_delete


def name(step: int, attempt: int = 1, start: int = 0, *tags: str) -> CheckpointName:
    return CheckpointName(step, attempt, start, tags)


def test_the_newest_are_kept_and_no_more() -> None:
    names = [name(step) for step in (10, 20, 30, 40)]
    assert to_delete(names, keep=3) == [name(10)]
    assert to_delete(names, keep=4) == []
    assert to_delete(names[::-1], keep=1) == names[:3]
    assert to_delete([], keep=1) == []


def test_the_newest_one_is_kept_whatever_is_asked_for() -> None:
    assert to_delete([name(10), name(20)], keep=0) == [name(10)]


def test_the_newest_best_one_every_final_and_every_kept_one_stay() -> None:
    names = [
        *(name(10, 1, 0, BEST), name(20, 1, 0, BEST), name(30, 1, 0, FINAL), name(40, 1, 0, FINAL)),
        *(name(50, 1, 0, KEEP), name(60, 1, 0, PREEMPTED), name(70)),
    ]
    assert to_delete(names, keep=1) == [names[0], names[5]]


def test_a_superseded_one_goes_as_soon_as_its_step_is_reached_again() -> None:
    old, before, again = name(20, 1, 0), name(10, 1, 0), name(20, 2, 10)
    assert current([old, before, again]) == [again, before]
    assert to_delete([old, before, again], keep=5) == [old]
    assert to_delete([old, before, name(19, 2, 10)], keep=5) == []


def test_the_newest_good_one_stays_beside_the_best() -> None:
    names = [name(10, 1, 0, BEST), name(20, 1, 0, GOOD), name(30, 1, 0, GOOD), name(40, 1, 0)]
    assert to_delete(names, keep=1) == [names[1]]


def test_the_best_of_a_line_that_was_left_is_no_best() -> None:
    best, again = name(20, 1, 0, BEST), name(30, 2, 10)
    assert to_delete([best, again], keep=1) == [best]
    kept = name(20, 1, 0, KEEP)
    assert to_delete([kept, again], keep=1) == []


def test_an_attempt_that_resumed_at_a_step_does_not_supersede_it() -> None:
    assert current([name(10, 1, 0), name(12, 2, 10)]) == [name(12, 2, 10), name(10, 1, 0)]
    assert current([name(11, 1, 0), name(12, 2, 10)]) == [name(12, 2, 10)]
    assert current([name(12, 2, 0), name(11, 2, 10)]) == [name(12, 2, 0), name(11, 2, 10)]


def test_tags_have_one_order_and_names_sort_by_step_then_attempt() -> None:
    assert name(1, 1, 0, FINAL, BEST) == name(1, 1, 0, BEST, FINAL)
    assert sorted([name(2, 1), name(1, 2), name(1, 1, 5)]) == [name(1, 1, 5), name(1, 2), name(2, 1)]


_NAMES = st.lists(
    st.builds(
        CheckpointName,
        st.integers(0, 6),
        st.integers(1, 4),
        st.integers(0, 5),
        st.sets(st.sampled_from([FINAL, BEST, KEEP]), max_size=1).map(tuple),
    ),
    unique=True,
    max_size=9,
)


@given(_NAMES, st.integers(1, 4))
def test_what_goes_is_what_the_rules_say_one_by_one(names: list[CheckpointName], keep: int) -> None:
    def superseded(one: CheckpointName) -> bool:
        return any(other.attempt > one.attempt and other.attempt_start < one.step for other in names)

    alive = sorted((one for one in names if not superseded(one)), reverse=True)
    assert current(names) == alive
    best = [one for one in alive if BEST in one.tags]
    expected = set()
    for one in names:
        spared = KEEP in one.tags or (one in alive and (FINAL in one.tags or one in best[:1] or one in alive[:keep]))
        passed = one in alive or (alive and one.step <= alive[0].step)
        if passed and not spared:
            expected.add(one)
    assert to_delete(names, keep) == sorted(expected)
