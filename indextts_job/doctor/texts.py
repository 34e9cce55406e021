"""The findings about the texts of a dataset: their ids, lengths and letters."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from indextts_job.data.array_files import spoken_ids
from indextts_job.doctor.findings import Finding, Level, data_finding
from indextts_job.doctor.survey import Pair, SeenArray, Survey
from indextts_job.tokenizer.encoding import stock_ids
from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.tokenizer.normalize import AMHARIC

LONG_TEXT_TOKENS = 120
"""Published inference cuts a text into segments of at most this length, so longer ones never occur there."""
UNKNOWN_SHARE = 0.01
OTHER_IDS_SHARE = {False: 0.02, True: 0.01}
"""Tolerated share of texts with ids that inference does not give them, for a SentencePiece model and for ranks: another
version of the text clean-up makes a few."""
SCRIPT_SHARE = 0.9
SHOWN_CHARACTERS = 60
_ETHIOPIC = re.compile("[\u1200-\u139f\u2d80-\u2ddf\uab00-\uab2f]")

Texts = Mapping[str, Pair]
"""One pair for each text, by the path of its ids: many pairs may share a target."""


def examine_texts(pairs: Sequence[Pair], found: Survey, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Examine the texts of pairs without faults.

    Args:
        pairs: Pairs whose arrays are good.
        found: The content of their arrays.
        tokenizer: The tokenizer that training will use.
    """
    texts = {pair.record.text_ids_path: pair for pair in pairs}
    # In a file of ranks every id stands for bytes, and ids 0 and 1 are pieces that the model drops.
    if tokenizer.ranks is None:
        yield from _start_and_stop_ids(texts, found)
        yield _unknown_ids(texts, found)
    yield from _other_tokenizer(texts, found, tokenizer)
    yield from _long_texts(texts, found)
    yield from _scripts(list(texts.values()))


def _listed(texts: Texts, found: Survey, fault_of: Callable[[SeenArray], str]) -> list[str]:
    return [f"{pair.where}: {fault}" for path, pair in texts.items() if (fault := fault_of(found.arrays[path]))]


def _start_and_stop_ids(texts: Texts, found: Survey) -> Iterator[Finding]:
    marked = _listed(texts, found, lambda seen: f"{seen.marks} start or stop ids inside the text" if seen.marks else "")
    if marked:
        advice = "Ids 0 and 1 frame a text, they have no place in it. Tokenize again without them."
        yield data_finding("text ids", "warning", f"{len(marked)} texts hold start or stop ids", advice, marked)


def _unknown_ids(texts: Texts, found: Survey) -> Finding:
    seen = {path: found.arrays[path] for path in texts}
    tokens = sum(array.length for array in seen.values())
    share = sum(array.unknown for array in seen.values()) / tokens  # faulty arrays are left out, so none is empty
    text = f"{share:.2%} of {tokens} text ids"
    advice = "Another tokenizer made these ids, or characters have no piece: `indextts-job tokenizer check`."
    if share <= UNKNOWN_SHARE:
        return data_finding("unknown ids", "ok", text, advice)
    return data_finding("unknown ids", "warning", text, advice, _worst_first(texts, found))


def _worst_first(texts: Texts, found: Survey) -> list[str]:
    """Texts with unknown ids, those with the largest share first."""
    seen = {path: found.arrays[path] for path in texts}
    affected = [path for path, array in seen.items() if array.unknown]
    return [
        f"{texts[path].where}: {seen[path].unknown} of {seen[path].length}: {texts[path].text[:SHOWN_CHARACTERS]}"
        for path in sorted(affected, key=lambda path: -seen[path].unknown / seen[path].length)
    ]


def _other_tokenizer(texts: Texts, found: Survey, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Compare the ids of texts with those that inference would give them."""
    version = found.limits.model.version
    with_text = {path: pair for path, pair in texts.items() if pair.text}
    stock = {path: stock_ids(tokenizer, pair.text, pair.record.language) for path, pair in with_text.items()}
    # Where tools of the release spell out numbers, our ids prove nothing.
    compared = {path: np.asarray(ids, np.int32) for path, ids in stock.items() if ids is not None}
    if not compared:
        return
    other = [
        f"{texts[path].where}: {texts[path].text[:SHOWN_CHARACTERS]}"
        for path, ids in compared.items()
        if spoken_ids(ids, version).tobytes() != found.arrays[path].ids  # both int32, so bytes compare values
    ]
    share = len(other) / len(compared)
    if share > OTHER_IDS_SHARE[version.ranks]:
        text = f"{share:.0%} of {len(compared)} texts have other ids than inference gives them with this tokenizer"
        advice = (
            "Use the tokenizer that the dataset was made with, and the text rules of inference, which every "
            "text is spoken by."
        )
        yield data_finding("tokenizer", "warning", text, advice, other)
    else:
        text = f"{len(compared) - len(other)} of {len(compared)} texts have the ids that this tokenizer gives them"
        yield data_finding("tokenizer", "ok", text, details=other)


def _long_texts(texts: Texts, found: Survey) -> Iterator[Finding]:
    long = _listed(texts, found, lambda seen: f"{seen.length} tokens" if seen.length > LONG_TEXT_TOKENS else "")
    if long:
        advice = f"Inference reads at most {LONG_TEXT_TOKENS} tokens at a time. Cut these utterances."
        yield data_finding("long texts", "warning", f"{len(long)} of {len(texts)} texts", advice, long)


def _scripts(pairs: Sequence[Pair]) -> Iterator[Finding]:
    # Only of Amharic it is known here which letters its texts have.
    amharic = [pair for pair in pairs if pair.record.language in AMHARIC and pair.text]
    if not amharic:
        return
    foreign = [
        f"{pair.where}: {pair.text[:SHOWN_CHARACTERS]}" for pair in amharic if _ethiopic_share(pair.text) < SCRIPT_SHARE
    ]
    share = 1 - len(foreign) / len(amharic)
    level: Level = "warning" if share < SCRIPT_SHARE else "ok"
    text = f"{share:.1%} of the Amharic texts are in Ethiopic letters"
    yield data_finding(
        "script", level, text, "Texts in Latin letters with the label Amharic are learned as neither language.", foreign
    )


def _ethiopic_share(text: str) -> float:
    # Digits and punctuation belong to no script.
    letters = [letter for letter in text if letter.isalpha()]
    return sum(bool(_ETHIOPIC.match(letter)) for letter in letters) / max(1, len(letters))
