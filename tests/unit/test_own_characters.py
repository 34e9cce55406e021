"""What a text of the base's characters can hold."""

# ruff: noqa: RUF001  # the characters are the subject

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.tokenizer.own_characters import OwnCharacters, number_of_characters
from indextts_job.tokenizer.ranks import parse_ranks
from tests.support.ranks import BASE_LETTERS, small_ranks

OWN = OwnCharacters.of(parse_ranks(small_ranks(), "small"))


@pytest.mark.parametrize(
    ("token", "new"),
    [
        ("ሀ".encode(), True),
        (" ሀለ".encode(), True),
        ("ሀ".encode()[:2], True),  # no letter of the base begins so
        ("ሀ".encode()[:1], False),  # `ạ` does
        (" the ሀ".encode()[:-2], False),
        ("ሀ".encode()[1:], False),  # many letters end so
        ("ሀለ".encode()[1:-1], True),
        ("ሀ".encode()[2:] + b"a", False),
        (b" cat", False),
        ("今天".encode(), False),
        ("天地".encode(), True),
        (b"", False),
    ],
)
def test_a_new_token_holds_a_character_that_has_none(token: bytes, new: bool) -> None:
    assert OWN.cannot_spell(token) is new


@given(st.text(BASE_LETTERS, min_size=1, max_size=20), st.data())
def test_no_part_of_a_base_text_is_taken_for_new(text: str, data: st.DataObject) -> None:
    content = text.encode()
    start = data.draw(st.integers(0, len(content)))
    assert not OWN.cannot_spell(content[start : data.draw(st.integers(start, len(content)))])


def test_characters_are_counted_where_they_begin() -> None:
    assert number_of_characters("aሀ天".encode()) == 3
    assert number_of_characters("ሀ".encode()[1:]) == 0
    assert OWN.without("the ሀ天地") == {"ሀ", "地"}
