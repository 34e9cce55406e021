"""What is wrong with a dataset, or odd about it: from a survey of its manifests and arrays, nothing read again.

Errors are what training would refuse; warnings are what it would learn. Every finding names file, line and id.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import sentencepiece

from indextts_job.doctor.distributions import histogram
from indextts_job.doctor.findings import Finding, Level, data_finding
from indextts_job.doctor.pairing import examine_pairing
from indextts_job.doctor.survey import Pair, SeenArray, Survey
from indextts_job.doctor.tails import CODES_PER_SECOND, code_count, padded_tails
from indextts_job.tokenizer.normalize import AMHARIC, normalize

LONG_TEXT_TOKENS = 120
"""Published inference cuts text into segments of at most so many: longer ones are out of its use."""
USUAL_S = (2.0, 15.0)
"""Recommended length of an utterance."""
UNUSUAL_SHARE = 0.05
UNKNOWN_SHARE = 0.01
OTHER_IDS_SHARE = 0.02
"""Of texts whose ids are not those of the tokenizer: single ones may come from another version of the clean-up."""
SCRIPT_SHARE = 0.9
EQUAL_LENGTHS = 3
"""Neighbours with one code length in a row that make a padded batch likely: by chance, 1 in 100,000 for 2 to 15 s."""
PADDED_SHARE = 0.1
OUTLIER_DEVIATIONS = 8.0
"""Robust standard deviations of the logarithm of codes per token; 8 leave a million good records alone."""
_ETHIOPIC = re.compile("[\u1200-\u139f\u2d80-\u2ddf\uab00-\uab2f]")
_DIGIT = re.compile(r"\d")


def examine_data(found: Survey, tokenizer: bytes) -> Iterator[Finding]:
    """Look at a dataset.

    Args:
        found: What is in it.
        tokenizer: Model file that training will use.
    """
    yield from _manifests(found)
    if not found.pairs:
        return
    yield _sizes(found)
    yield from _arrays(found)
    good = [pair for pair in found.pairs if not _fault(pair, found)]
    if not good:
        return
    yield from _texts(good, found, tokenizer)
    yield from _codes(good, found)
    yield from examine_pairing(good, found)
    yield from _distributions(good, found)


def _manifests(found: Survey) -> Iterator[Finding]:
    if found.malformed:
        count = f"{len(found.malformed)} lines are no records"
        yield data_finding("manifests", "error", count, "One JSON object per line is expected.", found.malformed)
    if found.single:
        count = f"{len(found.single)} lines are single utterances, training needs pairs"
        advice = "Make pairs with the pairing tool of your preprocessing (tools/build_gpt_prompt_pairs.py)."
        yield data_finding("manifests", "error", count, advice, found.single)
    if not found.pairs:
        yield data_finding("manifests", "error", "no pair at all", "Give paired manifests.")


def _sizes(found: Survey) -> Finding:
    train = [pair for pair in found.pairs if not pair.validation]
    codes = sum(found.arrays[pair.record.codes_path].length for pair in train)
    targets = len({pair.target_id for pair in train})
    languages = ", ".join(f"{name or 'no language'} {n}" for name, n in _counts(p.record.language for p in train))
    hours = codes / CODES_PER_SECOND / 3600
    text = f"{len(train)} pairs of {targets} utterances ({languages}), {hours:.2f} h; {len(found.pairs) - len(train)}"
    return data_finding("size", "ok", f"{text} pairs to validate")


def _fault(pair: Pair, found: Survey) -> str:
    record = pair.record
    named = (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path)
    fault = next((seen.fault for path in named if (seen := found.arrays[path]).fault), "")
    if fault or len(set(named)) < len(named):
        return fault or "one file is named for two different things"
    for path, said in ((record.text_ids_path, record.text_tokens), (record.codes_path, record.code_tokens)):
        if found.arrays[path].length != said:
            return f"{path}: {found.arrays[path].length} values, the manifest says {said}"
    return ""


def _arrays(found: Survey) -> Iterator[Finding]:
    faults = [f"{pair.where}: {fault}" for pair in found.pairs if (fault := _fault(pair, found))]
    if faults:
        advice = "Repair the files, or leave these samples out (--skip-bad-samples)."
        yield data_finding("arrays", "error", f"{len(faults)} records cannot be trained on", advice, faults)
    else:
        yield data_finding("arrays", "ok", f"{len(found.arrays)} files: shapes, types, ranges, lengths are right")


def _texts(pairs: Sequence[Pair], found: Survey, tokenizer: bytes) -> Iterator[Finding]:
    texts = {pair.record.text_ids_path: pair for pair in pairs}

    def listed(of: Callable[[Pair, SeenArray], str]) -> list[str]:
        return [f"{pair.where}: {text}" for path, pair in texts.items() if (text := of(pair, found.arrays[path]))]

    marked = listed(lambda _pair, seen: f"{seen.marks} start or stop ids inside the text" if seen.marks else "")
    if marked:
        advice = "Ids 0 and 1 frame a text, they have no place in it. Tokenize again without them."
        yield data_finding("text ids", "warning", f"{len(marked)} texts hold start or stop ids", advice, marked)
    tokens = sum(found.arrays[path].length for path in texts)
    unknown = sum(found.arrays[path].unknown for path in texts)
    worst = sorted(texts, key=lambda path: -found.arrays[path].unknown / found.arrays[path].length)
    share = unknown / tokens
    details = [
        f"{texts[path].where}: {found.arrays[path].unknown} of {found.arrays[path].length}: {texts[path].text[:60]}"
        for path in worst
        if found.arrays[path].unknown
    ]
    level: Level = "warning" if share > UNKNOWN_SHARE else "ok"
    advice = "Another tokenizer made these ids, or characters have no piece: `indextts-job tokenizer check`."
    text = f"{share:.2%} of {tokens} text ids"
    yield data_finding("unknown ids", level, text, advice, details if level != "ok" else ())
    yield from _other_tokenizer(texts, found, tokenizer)
    long = listed(lambda _pair, seen: f"{seen.length} tokens" if seen.length > LONG_TEXT_TOKENS else "")
    if long:
        advice = f"Inference reads at most {LONG_TEXT_TOKENS} tokens at a time. Cut these utterances."
        yield data_finding("long texts", "warning", f"{len(long)} of {len(texts)} texts", advice, long)
    yield from _scripts(list(texts.values()))


def _other_tokenizer(texts: dict[str, Pair], found: Survey, tokenizer: bytes) -> Iterator[Finding]:
    """Texts whose ids are not what the tokenizer gives. Digits are spelled out by the front ends of some languages."""
    asked = [
        (path, pair)
        for path, pair in texts.items()
        if pair.text and (pair.record.language in AMHARIC or not _DIGIT.search(pair.text))
    ]
    if not asked:
        return
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(tokenizer)
    encoded = processor.EncodeAsIds([normalize(pair.text, pair.record.language) for _, pair in asked])
    other = [
        f"{pair.where}: {pair.text[:60]}"
        for (path, pair), ids in zip(asked, encoded, strict=True)
        if np.asarray(ids, np.int32).tobytes() != found.arrays[path].ids
    ]
    share = len(other) / len(asked)
    if share > OTHER_IDS_SHARE:
        text = f"{share:.0%} of {len(asked)} texts have other ids than this tokenizer gives them"
        yield data_finding("tokenizer", "warning", text, "Use the tokenizer that the dataset was made with.", other)
    else:
        text = f"{len(asked) - len(other)} of {len(asked)} texts have the ids that this tokenizer gives them"
        yield data_finding("tokenizer", "ok", text, details=other)


def _scripts(pairs: Sequence[Pair]) -> Iterator[Finding]:
    amharic = [pair for pair in pairs if pair.record.language in AMHARIC and pair.text]
    if not amharic:
        return

    def share(text: str) -> float:
        letters = [letter for letter in text if letter.isalpha()]
        return sum(bool(_ETHIOPIC.match(letter)) for letter in letters) / max(1, len(letters))

    foreign = [f"{pair.where}: {pair.text[:60]}" for pair in amharic if share(pair.text) < SCRIPT_SHARE]
    mostly = 1 - len(foreign) / len(amharic)
    level: Level = "warning" if mostly < SCRIPT_SHARE else "ok"
    text = f"{mostly:.1%} of the Amharic texts are in Ethiopic letters"
    yield data_finding("script", level, text, "Latin text under an Amharic label teaches neither.", foreign)


def _codes(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    targets = {pair.record.codes_path: pair for pair in pairs}
    length = {path: found.arrays[path].length for path in targets}
    padded = [str(tail) for tail in padded_tails(pairs, found).values()]
    short = []
    known = 0
    for path, pair in targets.items():
        if pair.duration_s is None:
            continue
        known += 1
        expected = code_count(pair.duration_s)
        if length[path] < expected - CODES_PER_SECOND // 10 - 1:
            short.append(f"{pair.where}: {length[path]} codes for {pair.duration_s:g} s, {expected} expected")
    if padded:
        advice = (
            "The tail is the padding of a batch, and the stop token is taught behind it. Keep the speech only: "
            "--repair drop-tails --output FOLDER writes such a dataset."
        )
        text = f"{len(padded)} of {known} have more codes than sound"
        yield data_finding("code tails", "warning", text, advice, padded)
    if short:
        yield data_finding("short codes", "warning", f"{len(short)} of {known} lack codes", "Encode them again.", short)
    equal = [] if padded else _equal_neighbours(targets, length)
    if len(equal) > PADDED_SHARE * len(targets):
        text = f"{len(equal)} of {len(targets)} stand in rows of {EQUAL_LENGTHS} and more with one code length"
        advice = "So look batches that were padded to their longest clip. Give durations, or encode one clip at a time."
        yield data_finding("code tails", "warning", text, advice, equal)
    elif not padded and not short:
        told = f", {known} against their duration" if known else "; no durations to compare with"
        yield data_finding("code lengths", "ok", f"{len(targets)} looked at{told}")
    yield from _outliers(targets, found)


def _equal_neighbours(targets: dict[str, Pair], length: dict[str, int]) -> list[str]:
    """Records in rows of one code length, in the order of the utterances' names, which is that of preprocessing."""
    ordered = sorted(targets.items(), key=lambda item: item[1].target_id)
    rows = (list(row) for _, row in groupby(ordered, key=lambda item: length[item[0]]))
    return [
        f"{pair.where}: {length[path]} codes, as {len(row) - 1} neighbours"
        for row in rows
        if len(row) >= EQUAL_LENGTHS
        for path, pair in row
    ]


def _outliers(targets: dict[str, Pair], found: Survey) -> Iterator[Finding]:
    """Texts that do not fit their sound: far too many or too few codes per token."""
    rates = {
        path: math.log(found.arrays[path].length / found.arrays[pair.record.text_ids_path].length)
        for path, pair in targets.items()
    }
    middle = statistics.median(rates.values())
    deviation = 1.4826 * statistics.median(abs(rate - middle) for rate in rates.values())
    far = {path: rate for path, rate in rates.items() if abs(rate - middle) > OUTLIER_DEVIATIONS * max(deviation, 0.05)}
    if far:
        usual = math.exp(middle)
        details = [
            f"{targets[path].where}: {math.exp(rate):.1f} codes per token, usual are {usual:.1f}: "
            f"{targets[path].text[:50]}"
            for path, rate in sorted(far.items(), key=lambda item: -abs(item[1] - middle))
        ]
        advice = "Listen to them: text and sound probably belong to different clips, or the clip is mostly silence."
        yield data_finding("speaking rate", "warning", f"{len(far)} texts do not fit their sound", advice, details)


def _distributions(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    seconds = [found.arrays[pair.record.codes_path].length / CODES_PER_SECOND for pair in pairs]
    tokens = [float(found.arrays[pair.record.text_ids_path].length) for pair in pairs]
    low, high = USUAL_S
    outside = sum(not low <= value <= high for value in seconds) / len(seconds)
    text = f"{statistics.mean(seconds):.1f} s on average, {outside:.1%} outside {low:g} to {high:g} s"
    unusual = outside > UNUSUAL_SHARE
    advice = "Very short and very long clips teach little."
    yield replace(
        data_finding("utterances", "warning" if unusual else "ok", text, advice), picture=histogram(seconds, "s")
    )
    text = f"{statistics.mean(tokens):.1f} tokens on average"
    yield replace(data_finding("texts", "ok", text), picture=histogram(tokens, "tokens", 1))


def _counts(values: Iterable[str]) -> list[tuple[str, int]]:
    return Counter(values).most_common()
