"""Byte-pair learning that goes on where an encoder has stopped. Pure.

A word is the tokens that an encoder makes of it. The next token is the pair of neighbours that occurs most often; of
equals the first in the order of bytes. Words are kept exactly as an encoder with all tokens so far would have them:
it merges the neighbours of the lowest rank first, the leftmost of equals, and takes a whole word that is a token
without merging. So what is learned is what will be seen in training.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

Word = tuple[bytes, ...]
LEAST_OCCURRENCES = 2
"""A pair that occurs once says nothing about the language."""


class Merges(Iterator[bytes]):
    """Gives the learned tokens one by one, until no pair occurs twice."""

    def __init__(self, words: Mapping[Word, int], base: Sequence[bytes], admits: Callable[[bytes], bool]) -> None:
        """Count the pairs.

        Args:
            words: How often each word occurs.
            base: Tokens of the encoder that made them, in the order of their ranks.
            admits: Whether a token may be learned.
        """
        self._ranks = {token: rank for rank, token in enumerate(base)}
        self._admits = admits
        self._words: list[list[bytes]] = [list(word) for word in words]
        self._occurrences = list(words.values())
        self._whole = {b"".join(word): number for number, word in enumerate(words)}
        self._parts: dict[bytes, set[tuple[bytes, bytes]]] = defaultdict(set)
        self._counts: Counter[bytes] = Counter()
        self._places: dict[bytes, set[int]] = defaultdict(set)
        self._admitted: dict[bytes, bool] = {}
        for number, word in enumerate(self._words):
            self._count(number, word)
        self._queue = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._queue)

    def __next__(self) -> bytes:
        while self._queue:
            count, pair = heapq.heappop(self._queue)
            if -count < LEAST_OCCURRENCES:
                break
            if -count == self._counts[pair] and pair not in self._ranks:  # otherwise its count has changed since
                self._learn(pair)
                return pair
        raise StopIteration

    def in_use(self) -> set[bytes]:
        """The tokens that words now consist of, and those that they were merged from."""
        waiting = {token for word in self._words for token in word}
        found: set[bytes] = set()
        while waiting:
            found |= waiting
            waiting = {part for token in waiting for pair in self._parts.get(token, ()) for part in pair} - found
        return found

    def _learn(self, token: bytes) -> None:
        self._ranks[token] = len(self._ranks)
        changed: set[bytes] = set()
        for number in self._places.pop(token):
            changed |= self._replace(number, self._merged(self._words[number], token))
        if (number := self._whole.get(token, -1)) >= 0:
            changed |= self._replace(number, [token])
        for pair in changed:
            if self._counts[pair] >= LEAST_OCCURRENCES and pair not in self._ranks:
                heapq.heappush(self._queue, (-self._counts[pair], pair))

    def _merged(self, word: list[bytes], token: bytes) -> list[bytes]:
        """A word after all merges that the tokens so far allow, of which `token` is the last."""
        found: list[bytes] = []
        at = 0
        while at < len(word):
            pair = word[at : at + 2]
            if len(pair) == 1 or pair[0] + pair[1] != token:
                found.append(word[at])
                at += 1
                continue
            neighbours = {b"".join([*found[-1:], token]), b"".join([token, *word[at + 2 : at + 3]])} - {token}
            if any(neighbour in self._ranks for neighbour in neighbours):
                return self._merged_by_rank(word)  # an older token can be formed now, and comes first
            self._parts[token].add((pair[0], pair[1]))
            found.append(token)
            at += 2
        return found

    def _merged_by_rank(self, word: list[bytes]) -> list[bytes]:
        word, last = list(word), len(self._ranks)
        while len(word) > 1:
            ranks = [self._ranks.get(one + two, last) for one, two in itertools.pairwise(word)]
            lowest = min(ranks)
            if lowest == last:
                break
            at = ranks.index(lowest)
            joined = word[at] + word[at + 1]
            self._parts[joined].add((word[at], word[at + 1]))
            word[at : at + 2] = [joined]
        return word

    def _replace(self, number: int, new: list[bytes]) -> set[bytes]:
        """Put a word in the place of another, and give the pairs whose counts that changes."""
        old = self._words[number]
        if old == new:
            return set()
        self._words[number] = new
        # Most of a long word stays as it is: only what lies between the equal ends is counted anew.
        start = next((at for at, (one, two) in enumerate(zip(old, new, strict=False)) if one != two), len(new))
        shorter = min(len(old), len(new)) - start
        end = next((at for at in range(shorter) if old[-1 - at] != new[-1 - at]), shorter)
        before, after = (word[max(0, start - 1) : len(word) - end + 1] for word in (old, new))
        times = self._occurrences[number]
        removed = [pair for one, two in itertools.pairwise(before) if self._is_admitted(pair := one + two)]
        for pair in removed:
            self._counts[pair] -= times
        return set(removed) | self._count(number, after)

    def _count(self, number: int, part: Sequence[bytes]) -> set[bytes]:
        pairs = set()
        for one, two in itertools.pairwise(part):
            pair = one + two
            if self._is_admitted(pair):
                self._counts[pair] += self._occurrences[number]
                self._places[pair].add(number)
                pairs.add(pair)
        return pairs

    def _is_admitted(self, pair: bytes) -> bool:
        if pair not in self._admitted:
            self._admitted[pair] = self._admits(pair)
        return self._admitted[pair]
