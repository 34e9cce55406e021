"""The repairs of datasets: for each array that a repair changes, its new values. Nothing is written here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from indextts_job.data.archives import Reader
from indextts_job.data.array_files import check_ids
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
        return _prefixes(rows, found.limits)
    return _encoded_again(rows, tokenizer) if kind == "re-encode" else {}


def _cut_tails(rows: Sequence[Row], found: Survey) -> Changes:
    # A pair with a fault elsewhere is repaired as well: only its codes are needed for that.
    good = [pair for pair in found.pairs if not found.arrays[pair.record.codes_path].fault]
    tails = padded_tails(good, found)
    changes = {path: _cut(path, found.limits, tail.speech, str(tail)) for path, tail in tails.items()}
    if found.limits.model.version.ranks:
        for row in rows:
            path, seen = row.record.codes_path, found.arrays.get(row.record.codes_path)
            if path not in changes and seen and not seen.fault and seen.tail > TAIL_CODES:
                # The first of the equal codes may be speech.
                speech = seen.length - seen.tail + 1
                text = f"{row.where}: {seen.length} codes end in {seen.tail} equal ones, {speech} are kept"
                changes[path] = _cut(path, found.limits, speech, text)
    return changes


def _cut(path: str, limits: Limits, speech: int, where: str) -> Change:
    model = limits.model
    read = partial(check_ids, path, model.number_codes, model.max_mel_tokens, "code", Reader())
    return Change(values=lambda: read().values[:speech], where=where)


def _prefixes(rows: Sequence[Row], limits: Limits) -> Changes:
    first = limits.first_language_token
    assert first is not None  # noqa: S101  # the tokenizer of a model with languages has it
    changes = {}
    for row in rows:
        path = row.record.text_ids_path
        ids = check_ids(path, limits.text_pieces, 2 * limits.model.max_text_tokens, "text id", Reader()).values
        if path not in changes and language_of_token(int(ids[0]), first) is None:
            language = language_of(row.record.language)
            changes[path] = Change(
                values=partial(_in_front, language.token(first), ids),
                where=f"{row.where}: <|{language.slot}|> in front of {len(ids)} ids",
            )
    return changes


def _in_front(token: int, ids: Ids) -> Ids:
    return np.concatenate([np.array([token], np.int32), ids])


def _encoded_again(rows: Sequence[Row], tokenizer: Tokenizer) -> Changes:
    changes: dict[str, Change] = {}
    unknown = []
    for row in rows:
        ids = stock_ids(tokenizer, row.text, row.record.language) if row.text else None
        if ids is None:
            unknown.append(f"{row.where}: {row.text[:60] or 'no target_text or text'}")
        else:
            where = f"{row.where}: {len(ids)} ids"
            changes[row.record.text_ids_path] = Change(values=partial(np.array, ids, np.int32), where=where)
    if unknown:
        advice = (
            "Inference spells out their numbers and abbreviations, or adds readings, with tools that are not here. "
            "Write them in words, or encode these texts with the tools of the release."
        )
        raise DataError(findings_message(f"{len(unknown)} texts cannot be encoded here", unknown, advice))
    return changes
