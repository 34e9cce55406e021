"""Whether prompts, targets, speakers and sets are put together soundly."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.survey import Pair, Survey

SPEAKERS_RATIO, SPEAKER_SHARE = 20.0, 0.3
"""Pairs of the largest speaker to those of the smallest, and share of all: more is uneven."""
FEW_SPEAKERS = 3
"""Up to so many have large shares by nature."""


def examine_pairing(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """Look at pairs whose arrays are good."""
    yield from _pairing(pairs, found)
    yield from _leaks(pairs, found)
    yield from _speakers(pairs)


def _pairing(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    def listed(subject: str, of: Callable[[Pair], str], advice: str) -> Iterator[Finding]:
        wrong = [f"{pair.where}: {text}" for pair in pairs if (text := of(pair))]
        if wrong:
            yield data_finding(subject, "warning", f"{len(wrong)} of {len(pairs)} pairs", advice, wrong)

    seen: Counter[tuple[bool, str]] = Counter((pair.validation, pair.record.id) for pair in pairs)
    yield from listed(
        "duplicate ids",
        lambda pair: "its id occurs twice" if seen[pair.validation, pair.record.id] > 1 else "",
        "They are trained twice as often as the others.",
    )
    yield from listed(
        "prompt is target",
        lambda pair: "the prompt is the target" if pair.prompt_id and pair.prompt_id == pair.target_id else "",
        "The model sees the answer. Pair every target with another utterance of its speaker.",
    )
    yield from listed(
        "two speakers",
        lambda pair: (
            f"prompt {pair.speakers[0]}, target {pair.speakers[1]}"
            if all(pair.speakers) and pair.speakers[0] != pair.speakers[1]
            else ""
        ),
        "Prompt and target have to be of one speaker.",
    )
    same: dict[tuple[bool, bytes, bytes], dict[str, Pair]] = defaultdict(dict)
    for pair in pairs:
        arrays = (found.arrays[pair.record.text_ids_path], found.arrays[pair.record.codes_path])
        same[pair.validation, arrays[0].digest, arrays[1].digest].setdefault(pair.target_id, pair)
    twice = [
        f"{pair.where}: text and codes of {name}"
        for group in same.values()
        if len(group) > 1
        for name in [next(iter(group))]
        for pair in list(group.values())[1:]
    ]
    if twice:
        text = f"{len(twice)} utterances are there twice under different names"
        yield data_finding("duplicates", "warning", text, "Leave one of each out.", twice)


def _leaks(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    validation = [pair for pair in pairs if pair.validation]
    if not validation:
        return
    names = {pair.target_id for pair in pairs if not pair.validation}
    sounds = {found.arrays[p.record.codes_path].digest for p in pairs if not p.validation}
    leaked = [
        f"{pair.where}: target {pair.target_id} is trained on"
        for pair in validation
        if pair.target_id in names or found.arrays[pair.record.codes_path].digest in sounds
    ]
    if leaked:
        text = f"{len(leaked)} of {len(validation)} targets to validate on are trained on"
        yield data_finding("leakage", "warning", text, "The validation loss would flatter. Split by utterance.", leaked)
    else:
        yield data_finding("leakage", "ok", f"no target of {len(validation)} to validate on is trained on")


def _speakers(pairs: Sequence[Pair]) -> Iterator[Finding]:
    train = [pair for pair in pairs if not pair.validation and pair.speaker]
    if not train:
        yield data_finding("speakers", "ok", "the manifests name none")
        return
    counts = Counter(pair.speaker for pair in train)
    (most, many), (least, few) = counts.most_common()[0], counts.most_common()[-1]
    text = f"{len(counts)}, {few} ({least}) to {many} ({most}) pairs each"
    uneven = many / few > SPEAKERS_RATIO or (len(counts) > FEW_SPEAKERS and many / len(train) > SPEAKER_SHARE)
    advice = "Voices with few pairs are hardly learned. Take fewer pairs of the largest (pairs_per_target)."
    details = [f"{name}: {count} pairs" for name, count in counts.most_common()] if uneven else ()
    yield data_finding("speakers", "warning" if uneven else "ok", text, advice, details)
    languages: dict[str, set[str]] = defaultdict(set)
    for pair in train:
        languages[pair.speaker].add(pair.record.language)
    mixed = [f"{name}: {', '.join(sorted(filter(None, of)))}" for name, of in languages.items() if len(of) > 1]
    if mixed:
        text = f"{len(mixed)} speak several languages"
        yield data_finding("speakers", "warning", text, "Check the labels.", mixed)
