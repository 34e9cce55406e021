"""The findings about the languages of a dataset, for a model with a row and a token for each of them."""

from collections.abc import Iterator, Sequence

import numpy as np

from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.survey import Pair, Survey
from indextts_job.doctor.texts import LONG_TEXT_TOKENS
from indextts_job.model.languages import Language, code_of, language_of


def examine_languages(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """A line for each language of the pairs; nothing for a model without languages.

    Args:
        pairs: Pairs without faults.
        found: The content of their arrays.
    """
    first = found.limits.first_language_token
    if first is None:
        return
    by_label: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_label.setdefault(pair.record.language, []).append(pair)
    for label, of_language in by_label.items():
        yield _language(language_of(label), first, of_language, found)


def _language(language: Language, first: int, pairs: Sequence[Pair], found: Survey) -> Finding:
    texts = {pair.record.text_ids_path: pair for pair in pairs}
    codes = sum(found.arrays[pair.record.codes_path].length for pair in pairs)
    lengths = np.array([(found.arrays[path].stored, found.arrays[path].length) for path in texts])
    stored, read = lengths.sum(axis=0).tolist()
    long = int((lengths[:, 1] > LONG_TEXT_TOKENS).sum())
    crossing = sum(code_of(pair.prompt_language) not in ("", language.name) for pair in pairs)
    parts = [
        f"{language}: slot {language.slot}, row {language.row}, token {language.token(first)}",
        f"{codes / found.limits.model.version.codes_per_second / 3600:.2f} h",
        _tokens_per_character(texts, found),
        f"{(stored - read) / stored:.2%} of the ids dropped ({stored - read} of 0 and 1)",
        f"{long / len(texts):.1%} above {LONG_TEXT_TOKENS} tokens",
        f"{crossing / len(pairs):.1%} with a prompt in another language",
        f"{len({pair.speaker for pair in pairs} - {''})} speakers",
    ]
    return data_finding("language", "ok", ", ".join(filter(None, parts)))


def _tokens_per_character(texts: dict[str, Pair], found: Survey) -> str:
    known = {path: pair for path, pair in texts.items() if pair.text}
    characters = sum(len(pair.text) for pair in known.values())
    if not characters:
        return ""
    return f"{sum(found.arrays[path].stored for path in known) / characters:.2f} tokens a character"
