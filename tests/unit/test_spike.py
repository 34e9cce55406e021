"""A loss that jumps and stays is told once; one bad line, a slow rise and the beginning are not."""

import pytest

from indextts_job.loop.spike import SpikeWatch

CALM = [2.0, 1.9, 1.95, 1.85, 1.9, 1.8]


@pytest.mark.parametrize(
    ("losses", "told_at"),
    [
        ([*CALM, 3.5, 3.4, 3.6, 3.5, 3.5, 3.4, 3.5], [8]),
        ([*CALM, 3.5, 1.9, 3.5, 3.5, 1.9, 3.5], []),
        ([2.0, 2.0, 9.0, 9.0, 9.0, 9.0], []),  # too few lines to know what is usual
        ([2.0 * 1.03**step for step in range(30)], []),
        ([*CALM, 3.5, 3.4, 3.6, *[3.5] * 6, 7.0, 7.0, 7.0], [8, 17]),
    ],
)
def test_a_loss_that_stays_high_is_told_once(losses: list[float], told_at: list[int]) -> None:
    watch = SpikeWatch()
    assert [line for line, loss in enumerate(losses) if watch.after(loss)] == told_at


def test_a_rise_that_begins_at_a_restart_is_told() -> None:
    assert [line for line, loss in enumerate([3.5, 3.4, 3.6, 3.5]) if SpikeWatch().after(loss)] == []
    watch = SpikeWatch(1.8)
    assert [line for line, loss in enumerate([3.5, 3.4, 3.6, 3.5]) if watch.after(loss)] == [2]
    calm = SpikeWatch(1.8)
    assert not any(calm.after(loss) for loss in CALM)


def test_it_says_from_where_to_where() -> None:
    watch = SpikeWatch()
    told = [watch.after(loss) for loss in (*CALM, 3.5, 3.4, 3.6)][-1]
    assert "more than 50% above that of the lines before for 3 lines: 3.600 instead of 1.900" in told
