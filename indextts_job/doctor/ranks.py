"""Checks of an extended file of ranks: is the base still in it, and what does the new language gain?"""

import itertools
from collections.abc import Iterator, Sequence

from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.texts import LONG_TEXT_TOKENS
from indextts_job.doctor.tokenizer import SHOWN, SHOWN_CHARACTERS, scripts
from indextts_job.errors import ConfigError
from indextts_job.tokenizer.encoding import encode
from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.tokenizer.own_characters import OwnCharacters
from indextts_job.tokenizer.ranks import SPECIAL_TOKENS, parse_ranks
from indextts_job.tokenizer.row_map import RowMap

BASE_TEXT = (
    "<|en|> the cat sat by the door, and nobody knew why.",
    "<|en|> can you hear me? yes, i can hear you well!",
    "<|zh|> 今天天气很好,我们去公园散步吧.",
    "<|zh|> 你<|SPECIAL_TOKEN_2|>CHI1<|SPECIAL_TOKEN_2|>饭了吗?还没有.",
    "<|es|> EL GATO ESTÁ EN LA PUERTA, ¿Y QUIÉN SABE POR QUÉ?",
    "<|ja|> きょうは てんきが いい から さんぽに いこう.",
    "<|ar|> القط جالس قرب الباب، ولا أحد يعرف السبب.",
)
"""The languages of the released model in the form that inference gives to the tokenizer."""
TEXT_TOKENS = 600
"""The model takes so many tokens of a text."""


def demand_same_kind(base: Tokenizer, extended: Tokenizer) -> None:
    """Refuse to compare a SentencePiece model with a file of ranks.

    Raises:
        ConfigError: They are of different kinds.
    """
    if (base.ranks is None) != (extended.ranks is None):
        kinds = ("a SentencePiece model (IndexTTS-2.0)", "a file of ranks (IndexTTS-2.5)")
        first, second = kinds if base.ranks is None else kinds[::-1]
        raise ConfigError(
            f"the base is {first}, the tokenizer {second}: neither extends the other. Give two of a kind."
        )


def examine_ranks(
    base: Tokenizer, extended: Tokenizer, corpus: Sequence[str] = (), base_text: Sequence[str] = ()
) -> Iterator[Finding]:
    """Examine an extension of a file of ranks.

    Args:
        base: The base, which may be the same file: then the findings say how it reads the text.
        extended: The extension.
        corpus: Text of the new language, as inference encodes it.
        base_text: The same of the base's languages, in addition to `BASE_TEXT`.
    """
    old, new = (parse_ranks(each.content, "tokenizer") for each in (base, extended))
    own = OwnCharacters.of(old)
    yield data_finding("pieces", "ok", f"{extended.pieces} ids, of which the base has {base.pieces}")
    yield (same := _same_base(old, new))
    if same.level != "ok":
        return  # without the base's tokens in their places there is no map between the ids
    rows = RowMap(len(old), len(new) - len(old))
    yield from _new_tokens(new[len(old) :], own)
    yield _special_tokens(rows)
    yield from _base_text(base, extended, rows, [*BASE_TEXT, *base_text])
    if corpus:
        yield from _reading(base, extended, corpus)
    if corpus and rows.added:
        yield from _samples(extended, new, corpus)
        yield _use(extended, rows, new, corpus)


def _same_base(old: Sequence[bytes], new: Sequence[bytes]) -> Finding:
    # The tables of the base checkpoint are indexed by rank, and the order of the ranks is the order of the merges.
    changed = [rank for rank, (one, two) in enumerate(zip(old, new, strict=False)) if one != two]
    if not changed and len(new) >= len(old):
        return data_finding("base tokens", "ok", f"all {len(old)} with their ranks, byte for byte")
    at = changed[0] if changed else len(new)
    two = repr(new[at]) if changed else "missing"
    text = f"{len(changed) or len(old) - len(new)} differ; the first is rank {at}: {old[at]!r} has become {two}"
    advice = "The base checkpoint's rows would stand for other tokens. Extend the base tokenizer."
    return data_finding("base tokens", "error", text, advice)


def _new_tokens(added: Sequence[bytes], own: OwnCharacters) -> Iterator[Finding]:
    yield scripts([token.decode(errors="ignore") for token in added])
    able = [token for token in added if not own.cannot_spell(token)]
    if able:
        shown = ", ".join(repr(token.decode(errors="backslashreplace")) for token in able[:SHOWN])
        text = f"{len(able)} new tokens can be formed in base text, and change how it reads: {shown}"
        advice = "A new token needs a character that has no token in the base. Use `indextts-job tokenizer extend`."
        yield data_finding("base languages", "error", text, advice)


def _special_tokens(rows: RowMap) -> Finding:
    if not rows.added:
        return data_finding("special tokens", "ok", f"{len(SPECIAL_TOKENS)}, with the base's ids")
    first, last = rows.ranks, rows.ranks + len(SPECIAL_TOKENS) - 1
    text = (
        f"{len(SPECIAL_TOKENS)} in the base's order, with ids that are {rows.added} higher: {first}…{last} have become "
        f"{rows.in_extension(first)}…{rows.in_extension(last)}"
    )
    details = (
        "every text begins with one of them: data that were encoded with the base have to be encoded again",
        f"rows of an export: the base's 0…{first - 1}, {rows.added} new ones, the base's {first}…{last}, its spare row",
    )
    return data_finding("special tokens", "ok", text, details=details)


def _base_text(base: Tokenizer, extended: Tokenizer, rows: RowMap, lines: Sequence[str]) -> Iterator[Finding]:
    own = OwnCharacters.of(parse_ranks(base.content, "base tokenizer"))
    changed = [line for line in lines if [*map(rows.in_extension, encode(base, line))] != encode(extended, line)]
    broken = [line for line in changed if not own.without(line)]
    if broken:
        text = f"{len(broken)} of {len(lines)} lines encode differently: {broken[0]!r}"
        yield data_finding("base text", "error", text, "The base languages would suffer. Extend it again.")
        return
    text = f"{len(lines) - len(changed)} of {len(lines)} lines encode to the same tokens"
    advice = "They hold characters that have no token in the base. If that is a base language, learn from cleaner text."
    yield data_finding("base text", "warning" if changed else "ok", text, advice, changed)


def _reading(base: Tokenizer, extended: Tokenizer, corpus: Sequence[str]) -> Iterator[Finding]:
    before, after = ([len(encode(each, line)) for line in corpus] for each in (base, extended))
    yield _fertility(corpus, before, after)
    yield _long_texts(before, after)
    own = OwnCharacters.of(parse_ranks(extended.content, "tokenizer"))
    split = sorted(own.without("".join(map(_without_prefix, corpus))))
    text = f"{len(split)} have no token of their own, and are put together from bytes: "
    yield data_finding("characters", "ok", text + "".join(split[:SHOWN_CHARACTERS]) if split else "all have a token")


def _samples(extended: Tokenizer, tokens: Sequence[bytes], corpus: Sequence[str]) -> Iterator[Finding]:
    for line in itertools.islice(corpus, SHOWN):
        ranks = [number for number in encode(extended, line) if number < len(tokens)]
        yield data_finding("sample", "ok", "|".join(tokens[rank].decode(errors="replace") for rank in ranks))


def _fertility(corpus: Sequence[str], before: Sequence[int], after: Sequence[int]) -> Finding:
    letters = sum(len(_without_prefix(line)) for line in corpus)
    prefixes = sum(_without_prefix(line) != line for line in corpus)  # a token each
    rates = [(sum(lengths) - prefixes) / max(1, letters) for lengths in (before, after)]
    text = f"{rates[0]:.3f} tokens per character with the base"
    return data_finding("fertility", "ok", text if before == after else f"{text}, {rates[1]:.3f} now")


def _long_texts(before: Sequence[int], after: Sequence[int]) -> Finding:
    limits = ((LONG_TEXT_TOKENS, "inference speaks at a time"), (TEXT_TOKENS, "the model takes"))
    found = []
    for most, who in limits:
        now = "" if before == after else f" with the base, {_share(after, most)} now,"
        found.append(f"{_share(before, most)}{now} are longer than the {most} tokens that {who}")
    return data_finding("long texts", "ok", "; ".join(found))


def _share(lengths: Sequence[int], most: int) -> str:
    return f"{sum(length > most for length in lengths) / len(lengths):.1%}"


def _without_prefix(line: str) -> str:
    """A line without the language's token at its beginning; a line without a language has none."""
    return line[line.index("|>") + 2 :] if line.startswith("<|") else line


def _use(extended: Tokenizer, rows: RowMap, tokens: Sequence[bytes], corpus: Sequence[str]) -> Finding:
    seen = {number for line in corpus for number in encode(extended, line)}
    unseen = [tokens[rank] for rank in range(rows.ranks, rows.ranks + rows.added) if rank not in seen]
    text = f"{rows.added - len(unseen)} of {rows.added} new tokens occur in {len(corpus)} lines"
    if unseen:
        shown = ", ".join(token.decode(errors="backslashreplace") for token in unseen[:SHOWN])
        text += f"; the others are steps to longer ones, or rows that will not train: {shown}"
    return data_finding("use", "ok", text)
