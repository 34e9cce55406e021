"""The repairs of datasets: for each array that a repair changes, its new values. Nothing is written here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from indextts_job.data.archives import Reader
from indextts_job.data.array_files import OTHER_TOKENIZER_IDS, check_ids, of_released_tokenizer, spoken_ids
from indextts_job.data.dataset import Limits
from indextts_job.data.manifest import PairRecord
from indextts_job.data.plausibility import TAIL_CODES
from indextts_job.doctor.survey import Survey
from indextts_job.doctor.tails import padded_tails
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.languages import language_of, language_of_token
from indextts_job.tokenizer.encoding import stock_ids
from indextts_job.tokenizer.loading import Tokenizer

Repair = Literal["drop-tails", "add-prefix", "re-encode", "set-language"]
REPAIRS: tuple[Repair, ...] = ("drop-tails", "add-prefix", "re-encode", "set-language")
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The new content of one array."""

    values: Callable[[], Ids]
    """Reads the old values and makes the new ones: those of millions of arrays are not kept."""
    where: str
    """The record, and what is changed, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a manifest."""

    record: PairRecord
    text: str
    """The text; empty if the line has none."""

    @property
    def where(self) -> str:
        """File, line and id."""
        return f"{self.record.origin} (id {self.record.id})"


Changes = Mapping[str, Change]
"""Changes by the path of the array."""


def changes_of(kind: Repair, rows: Sequence[Row], found: Survey, tokenizer: Tokenizer) -> Changes:
    """What a repair changes.

    Args:
        kind: The repair.
        rows: All lines of the manifests.
        found: The content of their arrays.
        tokenizer: The tokenizer that training will use.

    Raises:
        ConfigError: The repair is not for this version of the model.
        DataError: Some lines cannot be repaired; names them.
    """
    if kind == "drop-tails":
        return _cut_tails(rows, found)
    if not found.limits.model.version.language_rows:
        raise ConfigError(
            f"--repair {kind} is for IndexTTS-2.5, whose texts begin with the token of their language. With this "
            f"tokenizer the model is {found.limits.model.version}."
        )
    if kind == "add-prefix":
        return _prefixes(rows, found.limits, tokenizer)
    return _encoded_again(rows, tokenizer) if kind == "re-encode" else {}


def _cut_tails(rows: Sequence[Row], found: Survey) -> Changes:
    # A pair with a fault elsewhere is repaired as well: only its codes are needed for that.
    good = [pair for pair in found.pairs if not found.arrays[pair.record.codes_path].fault]
    tails = padded_tails(good, found)
    longer = {path: _cut(path, found.limits, tail.speech, str(tail)) for path, tail in tails.items()}
    return {**_equal_ends(rows, found), **longer} if found.limits.model.version.ranks else longer


def _equal_ends(rows: Sequence[Row], found: Survey) -> Changes:
    """Cuts many equal codes at the end down to the first of them, which may be speech."""
    changes = {}
    for row in rows:
        path = row.record.codes_path
        seen = found.arrays.get(path)
        if seen and not seen.fault and seen.tail > TAIL_CODES:
            speech = seen.length - seen.tail + 1
            text = f"{row.where}: {seen.length} codes end in {seen.tail} equal ones, {speech} are kept"
            changes[path] = _cut(path, found.limits, speech, text)
    return changes


def _cut(path: str, limits: Limits, speech: int, where: str) -> Change:
    model = limits.model
    read = partial(check_ids, path, model.number_codes, model.max_mel_tokens, "code", Reader())
    return Change(values=lambda: read().values[:speech], where=where)


def _prefixes(rows: Sequence[Row], limits: Limits, tokenizer: Tokenizer) -> Changes:
    changes: dict[str, Change] = {}
    foreign: list[str] = []
    largest = 0
    for row in rows:
        ids = _ids_of(row, limits)
        largest = max(largest, int(ids.max()))
        if row.record.text_ids_path in changes or _has_prefix(ids, limits):
            continue
        change = _prefixed(row, ids, limits)
        changes[row.record.text_ids_path] = change
        if _lacks_more(row, ids, change, tokenizer):
            foreign.append(row.where)
    if changes and not foreign and largest < OTHER_TOKENIZER_IDS and not any(row.text for row in rows):
        foreign = [f"all ids are below {OTHER_TOKENIZER_IDS}, and there is no text to compare them with"]
    _demand_none(foreign)
    return changes


def _demand_none(foreign: Sequence[str]) -> None:
    if foreign:
        advice = "A prefix would hide ids of another tokenizer. Encode the texts again: --repair re-encode."
        raise DataError(findings_message(f"{len(foreign)} texts lack more than a prefix", foreign, advice))


def _ids_of(row: Row, limits: Limits) -> Ids:
    longest = 2 * limits.model.max_text_tokens
    return check_ids(row.record.text_ids_path, limits.text_pieces, longest, "text id", Reader()).values


def _first_language(limits: Limits) -> int:
    first = limits.first_language_token
    assert first is not None  # noqa: S101  # the tokenizer of a model with languages has it
    return first


def _has_prefix(ids: Ids, limits: Limits) -> bool:
    spoken = spoken_ids(ids, limits.model.version)
    return bool(len(spoken)) and language_of_token(int(spoken[0]), _first_language(limits)) is not None


def _prefixed(row: Row, ids: Ids, limits: Limits) -> Change:
    language = language_of(row.record.language)
    values = partial(_in_front, language.token(_first_language(limits)), ids)
    return Change(values=values, where=f"{row.where}: <|{language.slot}|> in front of {len(ids)} ids")


def _lacks_more(row: Row, ids: Ids, change: Change, tokenizer: Tokenizer) -> bool:
    """Whether ids with a prefix would still not be those of the tokenizer."""
    if of_released_tokenizer(int(ids[0]), tokenizer.first_language_token or 0):
        return True
    stock = stock_ids(tokenizer, row.text, row.record.language) if row.text else None
    return stock is not None and stock != change.values().tolist()


def _in_front(token: int, ids: Ids) -> Ids:
    return np.concatenate([np.array([token], np.int32), ids])


def _encoded_again(rows: Sequence[Row], tokenizer: Tokenizer) -> Changes:
    changes: dict[str, Change] = {}
    encoded: dict[str, list[int]] = {}
    unknown = []
    for row in rows:
        path = row.record.text_ids_path
        ids = stock_ids(tokenizer, row.text, row.record.language) if row.text else None
        if ids is None:
            unknown.append(f"{row.where}: {row.text[:60] or 'no target_text or text in the record'}")
        elif encoded.setdefault(path, ids) != ids:
            unknown.append(f"{row.where}: another record gives the same ids another text or language")
        else:
            changes[path] = Change(values=partial(np.array, ids, np.int32), where=f"{row.where}: {len(ids)} ids")
    if unknown:
        advice = (
            "Numbers and abbreviations of Chinese, English and Spanish, and all Japanese, go through tools of the "
            "release that are not here: write them in words, or encode them there. Records need their text: pairs of "
            "the public 2.5 tool have none, its utterances_*.jsonl have."
        )
        raise DataError(findings_message(f"{len(unknown)} texts cannot be encoded here", unknown, advice))
    return changes
