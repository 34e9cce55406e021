"""Assembling: a pure function of manifest, records, tokenizer and settings, which reads no audio and needs no GPU.

`train.index.safetensors` and `val.index.safetensors` lie beside the shards that they share. Each becomes visible with
one write, after everything that it names; several workers that assemble write the same bytes.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from indextts_job.data.array_files import spoken_ids
from indextts_job.data.containers import arrays_of, header_of
from indextts_job.data.dataset import Limits
from indextts_job.data.shard_index import INDEX, MadeFor
from indextts_job.errors import DataError, findings_message
from indextts_job.hashing import identity_hash
from indextts_job.prepare.config import PrepareConfig
from indextts_job.prepare.index import IndexParts, Numbers, Pair, Utterances, Vectors, candidate_of, index_bytes
from indextts_job.prepare.ownership import is_prepared
from indextts_job.prepare.pairing import pair
from indextts_job.prepare.records import StoredObject, UnitRecord
from indextts_job.prepare.split import split_of
from indextts_job.prepare.unit_store import UnitStore
from indextts_job.prepare.units import Making, Unit
from indextts_job.prepare.utterances import Utterance
from indextts_job.prepare.verdicts import Ids, Refused, Taken, Verdicts, judge
from indextts_job.redaction import redacted
from indextts_job.tokenizer.encoding import ids_as_spelt
from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.version import program_version

REFUSED_FILE, SUMMARY_FILE = "refused.jsonl", "prepared.json"
UNKNOWN_PIECE = "<unk>"
logger = logging.getLogger(__name__)
LONE = "no prompt: its speaker has no other utterance of 2 s or more with another text in this split"
SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Assembled:
    """What was assembled."""

    summary: Mapping[str, Any]
    refused: Sequence[Refused]
    utterances: int

    def demand_enough(self, max_refused: float) -> None:
        """Refuse a dataset that lacks too much.

        Raises:
            DataError: More than this share of the utterances was refused; names some of them.
        """
        if len(self.refused) > max_refused * self.utterances:
            found = [f"{one.utterance.origin}: {one.utterance.id}: {one.reason}" for one in self.refused]
            advice = (
                f"{REFUSED_FILE} lists all of them. Correct or remove them, and run the same command again; or raise "
                "max_refused. Everything else is prepared."
            )
            share = len(self.refused) / self.utterances
            allowed = f"max_refused is {max_refused:.1%}"
            headline = f"{len(found)} of {self.utterances} utterances ({share:.1%}) were refused, {allowed}"
            raise DataError(findings_message(headline, found, advice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What a dataset is assembled of."""

    config: PrepareConfig
    units: Sequence[Unit]
    making: Making
    tokenizer: Tokenizer
    limits: Limits
    store: UnitStore
    check: Callable[[], object]
    """Called often; may raise."""

    def run(self, records: Sequence[UnitRecord]) -> Assembled:
        """Assemble the dataset.

        Args:
            records: Those of all units.

        Raises:
            DataError: There is nothing to train on.
        """
        verdicts = judge(self.units, records, self._ids, (self.limits.model.max_text_tokens, self._unknown), self.check)
        pairs, lone = self._pairs(verdicts)
        summary = self._summary(verdicts, pairs, lone)
        # Before the indexes: what they leave out can be looked up as soon as they are there.
        self.store.storage.write(REFUSED_FILE, _refused_lines(verdicts.refused, lone))
        assembled = Assembled(summary, verdicts.refused, sum(len(unit.utterances) for unit in self.units))
        if not pairs["train"]:
            assembled.demand_enough(self.config.max_refused)
            if pairs["val"]:
                raise DataError(
                    f"no pairs to train on: all {len(pairs['val'])} pairs are kept for validation. Lower "
                    f"validation.ratio, which is {self.config.validation.ratio:g}, or correct the `split` of records."
                )
            raise DataError(
                f"no pairs to train on: {len(verdicts.taken)} utterances taken, {len(verdicts.refused)} refused, "
                f"{len(lone)} without a prompt. A target needs another utterance of its speaker; {REFUSED_FILE} lists "
                "all of them."
            )
        self._write(records, verdicts, pairs, lone)
        self.store.storage.write(SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False).encode())
        return assembled

    @property
    def _unknown(self) -> int | None:
        names = self.tokenizer.piece_names
        return names.index(UNKNOWN_PIECE) if self.tokenizer.ranks is None and UNKNOWN_PIECE in names else None

    def _ids(self, utterance: Utterance) -> Ids:
        ids = ids_as_spelt(self.tokenizer, utterance.text, utterance.language) if utterance.text else []
        return spoken_ids(np.array(ids, np.int32), self.limits.model.version)

    def _pairs(self, verdicts: Verdicts) -> tuple[dict[str, list[Pair]], list[Taken]]:
        """The pairs of each split, and the utterances for which there is no prompt."""
        pairs: dict[str, list[Pair]] = {}
        by_place = {taken.place: taken for taken in verdicts.taken}
        lone: list[Taken] = []
        for split in SPLITS:
            self.check()
            inside = [one for one in verdicts.taken if split_of(one.utterance, self.config.validation) == split]
            pairs[split] = []
            for target, prompts in pair([candidate_of(one) for one in inside], self.config.pairs):
                pairs[split] += [(target, prompt) for prompt in prompts]
                lone += [] if prompts else [by_place[target.place]]
        return pairs, lone

    def _write(
        self,
        records: Sequence[UnitRecord],
        verdicts: Verdicts,
        pairs: Mapping[str, Sequence[Pair]],
        lone: Sequence[Taken],
    ) -> None:
        """Write the shards of text ids and codes, and then the indexes."""
        made_for = MadeFor.of(self.limits)
        bound = max(self.limits.text_pieces, self.limits.model.number_codes) - 1
        dtype = np.dtype(np.uint16 if bound <= np.iinfo(np.uint16).max else np.int32)
        utterances = {split: Utterances(dtype) for split in SPLITS}
        rows = self._write_ids(records, verdicts, pairs, utterances)
        vectors = Vectors.of(records)
        left_out = f"{len(verdicts.refused)} utterances were refused and {len(lone)} have no prompt: {REFUSED_FILE}"
        for split in reversed(SPLITS):  # the one to train on comes last: its presence says that all is there
            if not pairs[split]:
                self._remove_index(f"{split}.{INDEX}")
                continue
            parts = IndexParts(
                pairs=pairs[split],
                targets=rows[split],
                utterances=utterances[split],
                vectors=vectors,
                made_for=made_for,
                prepared_by=self._prepared_by(),
                # One line for all of them: a start of a training would print a line for each skipped sample.
                notes=(left_out,) if split == "train" and (verdicts.refused or lone) else (),
            )
            self.store.storage.write(f"{split}.{INDEX}", index_bytes(parts))

    def _remove_index(self, name: str) -> None:
        """Remove the index of an earlier split; one that no preparation wrote stays."""
        if name not in self.store.objects():
            return
        if is_prepared(self.store.storage, name):
            self.store.storage.delete(name)
        else:
            where = redacted(self.store.storage.url)
            logger.warning("%s/%s was not written by a preparation: it is left as it is.", where, name)

    def _write_ids(
        self,
        records: Sequence[UnitRecord],
        verdicts: Verdicts,
        pairs: Mapping[str, Sequence[Pair]],
        utterances: Mapping[str, Utterances],
    ) -> dict[str, dict[int, int]]:
        """Write the rows of all targets; gives the row of each, by split and place in the work list."""
        splits = {target.place: split for split in SPLITS for target, _ in pairs[split]}
        by_place = {taken.place: taken for taken in verdicts.taken}
        rows: dict[str, dict[int, int]] = {split: {} for split in SPLITS}
        there = self.store.objects()
        for place, codes in self._codes(records):
            if place in splits:
                split = splits[place]
                rows[split][place] = len(rows[split])
                for name, content in utterances[split].add(by_place[place].ids, codes):
                    self.store.write_object(name, content, there)
        for split in SPLITS:
            for name, content in utterances[split].flush():
                self.store.write_object(name, content, there)
        return rows

    def _codes(self, records: Sequence[UnitRecord]) -> Iterator[tuple[int, Numbers]]:
        """Place and codes of every utterance of the work list; none of one that was refused."""
        place = 0
        for record in records:
            self.check()
            codes, lengths = _codes_of(self.store, record.codes)
            for part in np.split(codes, np.cumsum(lengths)[:-1]):
                yield place, part
                place += 1

    def _prepared_by(self) -> dict[str, Any]:
        config = self.config
        # Without places: every worker writes the same bytes, wherever its manifest lies.
        fields = ("id", "reference", "text", "speaker", "language", "duration_s", "split")
        manifest = [[getattr(one, name) for name in fields] for unit in self.units for one in unit.utterances]
        return {
            "encoders": dict(self.making.encoders),
            "tokenizer": self.tokenizer.sha256,
            "manifest": identity_hash(json.dumps(manifest).encode()),
            "settings": {"pairs": asdict(config.pairs), "validation": asdict(config.validation), "unit": config.unit},
            "algorithm": self.making.algorithm,
            "program": program_version(),
        }

    def _summary(
        self, verdicts: Verdicts, pairs: Mapping[str, Sequence[Pair]], lone: Sequence[Taken]
    ) -> dict[str, Any]:
        return {
            "utterances": sum(len(unit.utterances) for unit in self.units),
            "taken": len(verdicts.taken),
            "refused": len(verdicts.refused),
            "without_prompt": len(lone),
            "hours": round(sum(one.record.seconds for one in verdicts.taken) / 3600, 4),
            "pairs": {split: len(pairs[split]) for split in SPLITS},
            "speakers": len({one.utterance.speaker for one in verdicts.taken}),
            "warnings": {
                what: {"count": count, "examples": verdicts.examples[what]}
                for what, count in sorted(verdicts.counts.items())
            },
        }


def _codes_of(store: UnitStore, stored: StoredObject) -> tuple[Numbers, Numbers]:
    """All codes of a unit end to end, and their number for each utterance."""
    content = store.read_object(stored.name, stored.size_bytes, stored.sha256)
    arrays = arrays_of(content, header_of(content))
    return arrays["codes"], arrays["lengths"]


def _refused_lines(refused: Sequence[Refused], lone: Sequence[Taken]) -> bytes:
    entries = [(one.utterance, one.reason, "refused") for one in refused]
    entries += [(one.utterance, LONE, "dropped") for one in lone]
    lines = [
        json.dumps({"id": one.id, "audio": one.reference, "status": status, "reason": redacted(reason),
                    "origin": one.origin}, ensure_ascii=False)
        for one, reason, status in entries
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines).encode()
