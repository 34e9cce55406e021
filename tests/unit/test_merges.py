"""Learning goes on where the encoder has stopped: compared with a learner that encodes everything anew each time."""

import itertools
from collections import Counter
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from indextts_job.tokenizer.merges import LEAST_OCCURRENCES, Merges
from tests.support.ranks import merged

LETTERS = [b"a", b"b", b"c", b"d"]


def anything(token: bytes) -> bool:
    return True


def slowly(words: dict[bytes, int], base: list[bytes], admits: Callable[[bytes], bool]) -> list[bytes]:
    tokens = list(base)
    while True:
        pairs: Counter[bytes] = Counter()
        for word, times in words.items():
            for one, two in itertools.pairwise(merged(word, tokens)):
                pairs[one + two] += times
        often = [pair for pair in pairs if pairs[pair] >= LEAST_OCCURRENCES and admits(pair)]
        if not often:
            return tokens[len(base) :]
        tokens.append(min(often, key=lambda pair: (-pairs[pair], pair)))


WORDS = st.dictionaries(st.text("abcd", min_size=1, max_size=8).map(str.encode), st.integers(1, 5), max_size=12)
KNOWN = st.lists(st.text("abcd", min_size=2, max_size=4).map(str.encode), max_size=6, unique=True)


@given(WORDS, KNOWN, st.sampled_from([anything, lambda token: b"d" in token, lambda token: len(token) < 4]))
@example({b"aaaa": 2, b"aaa": 1}, [], anything)
@example({b"abcd": 3, b"bcd": 2}, [b"abc", b"cd"], anything)
def test_the_same_tokens_in_the_same_order(
    words: dict[bytes, int], known: list[bytes], admits: Callable[[bytes], bool]
) -> None:
    base = [*LETTERS, *known]
    learner = Merges({tuple(merged(word, base)): times for word, times in words.items()}, base, admits)
    learned = list(learner)
    assert learned == slowly(words, base, admits)
    useful = [token for token in learned if token in learner.in_use()]
    for word in words:
        assert merged(word, [*base, *useful]) == merged(word, [*base, *learned])


def test_nothing_is_learned_from_what_occurs_once() -> None:
    assert list(Merges({(b"a", b"b"): 1}, LETTERS, anything)) == []
