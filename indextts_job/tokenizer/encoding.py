"""Text to ids, with either kind of tokenizer."""

from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.tokenizer.ranks import SPECIAL_TOKENS, SPLIT_PATTERN, parse_ranks


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prepared text."""
    import tiktoken

    ranks = {token: rank for rank, token in enumerate(parse_ranks(tokenizer.content, ""))}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special).encode(
        text, allowed_special="all"
    )
