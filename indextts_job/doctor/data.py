"""The findings about a dataset, from a survey of its manifests and arrays. No file is read again.

Errors are what training would refuse; warnings are what a model would learn wrongly from the data. Every finding names
file, line and id.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from indextts_job.doctor.codes import examine_codes
from indextts_job.doctor.distributions import histogram
from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.languages import examine_languages
from indextts_job.doctor.pairing import examine_pairing
from indextts_job.doctor.survey import Pair, Survey
from indextts_job.doctor.texts import examine_texts
from indextts_job.doctor.whole import examine_whole
from indextts_job.tokenizer.loading import Tokenizer

USUAL_S = (2.0, 15.0)
"""Recommended length of an utterance."""
UNUSUAL_SHARE = 0.05


def examine_data(found: Survey, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Examine a dataset.

    Args:
        found: The content of its manifests and arrays.
        tokenizer: The tokenizer that training will use.
    """
    yield from _manifests(found)
    if not found.pairs:  # everything below is about pairs
        return
    yield _size(found)
    faults = found.faults()
    yield _arrays(found, faults)
    # The other findings compare lengths and contents, which a faulty array does not have.
    good = [pair for pair, fault in zip(found.pairs, faults, strict=True) if not fault]
    if not good:
        return
    yield from examine_languages(good, found)
    yield from examine_texts(good, found, tokenizer)
    yield from examine_codes(good, found)
    yield from examine_whole(good, found)
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
        yield data_finding("manifests", "error", "no pairs", "Give paired manifests.")


def _size(found: Survey) -> Finding:
    train = [pair for pair in found.pairs if not pair.validation]
    codes = sum(found.arrays[pair.record.codes_path].length for pair in train)
    # Hours are counted per pair, as training reads them: a target in two pairs counts twice.
    targets = len({pair.target_id for pair in train})
    by_language = Counter(pair.record.language for pair in train).most_common()
    languages = ", ".join(f"{name or 'no language'} {count}" for name, count in by_language)
    hours = codes / found.limits.model.version.codes_per_second / 3600
    version = found.limits.model.version
    text = f"{version}: {len(train)} pairs of {targets} utterances ({languages}), {hours:.2f} h"
    return data_finding("size", "ok", f"{text}; {len(found.pairs) - len(train)} validation pairs")


def _arrays(found: Survey, faults: Sequence[str]) -> Finding:
    bad = [f"{pair.where}: {fault}" for pair, fault in zip(found.pairs, faults, strict=True) if fault]
    if bad:
        advice = "Repair the files, or leave these samples out (--skip-bad-samples)."
        return data_finding("arrays", "error", f"{len(bad)} records cannot be trained on", advice, bad)
    return data_finding("arrays", "ok", f"{len(found.arrays)} files: shapes, types, ranges, lengths are right")


def _distributions(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    rate = found.limits.model.version.codes_per_second
    seconds = [found.arrays[pair.record.codes_path].length / rate for pair in pairs]
    tokens = [float(found.arrays[pair.record.text_ids_path].length) for pair in pairs]
    low, high = USUAL_S
    outside = sum(not low <= value <= high for value in seconds) / len(seconds)
    text = f"{statistics.mean(seconds):.1f} s on average, {outside:.1%} outside {low:g} to {high:g} s"
    advice = "Very short and very long clips teach little."
    finding = data_finding("utterances", "warning" if outside > UNUSUAL_SHARE else "ok", text, advice)
    yield replace(finding, picture=histogram(seconds, "s"))
    finding = data_finding("texts", "ok", f"{statistics.mean(tokens):.1f} tokens on average")
    yield replace(finding, picture=histogram(tokens, "tokens", 1))
