"""A small file of ranks in the form of the released one, and byte-pair encoding as one would write it down first."""

import base64
import itertools
import re
from collections import Counter
from collections.abc import Sequence

BASE_TEXTS = (
    "the cat sat by the door, and nobody knew why. can you hear me? yes, i can hear you well!",
    "EL GATO ESTÁ EN LA PUERTA, ¿Y QUIÉN SABE POR QUÉ? EL GATO LO SABE.",
    "今天天气很好,我们去公园散步吧. 你吃饭了吗?还没有.",
    "きょうは てんきが いい から さんぽに いこう.",
    "القط جالس قرب الباب، ولا أحد يعرف السبب.",
    "ạẹịọụ 0123456789 - '…\"",  # their first byte is that of Ethiopic letters too
)
BASE_LETTERS = "".join(sorted(set("".join(BASE_TEXTS))))
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = [bytes([byte]) for byte in [*_PRINTED, *(byte for byte in range(256) if byte not in _PRINTED)]]
"""In the order of GPT-2, so that 0 and 1 are `!` and `"`, as in the released file."""


def small_ranks(merges: int = 60) -> bytes:
    """A file of ranks that knows the letters of `BASE_TEXTS`, and some of their words.

    Like the released file it has a token without a byte, which is written `=`.
    """
    tokens = list(_BYTES)
    for letter in BASE_LETTERS:
        code = letter.encode()
        tokens += [code[:size] for size in range(2, len(code) + 1) if code[:size] not in tokens]
    words = Counter(found.encode() for text in BASE_TEXTS for found in re.findall(r" ?\w+", text))
    for _ in range(merges):
        pairs: Counter[bytes] = Counter()
        for word, times in words.items():
            for one, two in itertools.pairwise(merged(word, tokens)):
                pairs[one + two] += times
        tokens.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
    return ranks_file([*tokens[:300], b"", *tokens[300:]])


def ranks_file(tokens: Sequence[bytes]) -> bytes:
    lines = (b"%s %d\n" % (base64.b64encode(token) or b"=", rank) for rank, token in enumerate(tokens))
    return b"".join(lines)


def merged(word: bytes, tokens: Sequence[bytes]) -> list[bytes]:
    """A word in tokens: the neighbours of the lowest rank are merged first, the leftmost of equals."""
    if word in tokens:
        return [word]
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    parts = [bytes([byte]) for byte in word]
    while True:
        known = [
            (rank_of[one + two], at) for at, (one, two) in enumerate(itertools.pairwise(parts)) if one + two in rank_of
        ]
        if not known:
            return parts
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
