"""Where the base's rows are in an extension."""

import pytest

from indextts_job.tokenizer.row_map import RowMap


@pytest.mark.parametrize(
    ("row", "moved"),
    [(0, 0), (58835, 58835), (58836, 62836), (58913, 62913), (60508, 64508), (60509, 64509)],  # the last is spare
)
def test_special_tokens_and_the_spare_row_move_up(row: int, moved: int) -> None:
    rows = RowMap(ranks=58836, added=4000)
    assert rows.in_extension(row) == moved
    assert rows.in_base(moved) == row


def test_new_rows_have_none_in_the_base_and_the_others_exactly_one() -> None:
    rows = RowMap(ranks=7, added=3)
    back = [rows.in_base(row) for row in range(15)]
    assert back == [*range(7), None, None, None, *range(7, 12)]
    assert [rows.in_extension(row) for row in range(12)] == [*range(7), *range(10, 15)]
