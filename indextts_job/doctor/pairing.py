"""The findings about pairs: duplicates, prompts, speakers, and targets in both training and validation set."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.survey import Pair, Survey

SPEAKERS_RATIO, SPEAKER_SHARE = 20.0, 0.3
"""Bounds of an even dataset: pairs of the largest speaker over those of the smallest, and over all pairs."""
FEW_SPEAKERS = 3
"""With so few speakers or fewer, the largest share is large in any case."""


def examine_pairing(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """Examine pairs whose arrays are good."""
    yield from _duplicate_ids(pairs)
    yield from _prompts_that_are_targets(pairs)
    yield from _pairs_of_two_speakers(pairs)
    yield from _duplicate_utterances(pairs, found)
    yield from _leaks(pairs, found)
    train = [pair for pair in pairs if not pair.validation and pair.speaker]
    if not train:
        yield data_finding("speakers", "ok", "the manifests name no speakers")
        return
    yield _speakers(train)
    yield from _speakers_of_several_languages(train)


def _duplicate_ids(pairs: Sequence[Pair]) -> Iterator[Finding]:
    # Training and validation set may share ids; the leak is a finding of its own.
    seen = Counter((pair.validation, pair.record.id) for pair in pairs)
    wrong = [f"{pair.where}: its id occurs twice" for pair in pairs if seen[pair.validation, pair.record.id] > 1]
    yield from _warning("duplicate ids", wrong, pairs, "They are trained twice as often as the others.")


def _prompts_that_are_targets(pairs: Sequence[Pair]) -> Iterator[Finding]:
    same = [pair for pair in pairs if pair.prompt_id and pair.prompt_id == pair.target_id]
    wrong = [f"{pair.where}: the prompt is the target" for pair in same]
    advice = "The model sees the answer. Pair every target with another utterance of its speaker."
    yield from _warning("prompt is target", wrong, pairs, advice)


def _pairs_of_two_speakers(pairs: Sequence[Pair]) -> Iterator[Finding]:
    named = [(pair, *pair.speakers) for pair in pairs if all(pair.speakers)]
    wrong = [f"{pair.where}: prompt {prompt}, target {target}" for pair, prompt, target in named if prompt != target]
    yield from _warning("two speakers", wrong, pairs, "Prompt and target have to be of one speaker.")


def _warning(subject: str, wrong: Sequence[str], pairs: Sequence[Pair], advice: str) -> Iterator[Finding]:
    if wrong:
        yield data_finding(subject, "warning", f"{len(wrong)} of {len(pairs)} pairs", advice, wrong)


def _duplicate_utterances(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """Targets with the same text and codes under different names."""
    # Several pairs with one target are wanted, so each target counts once.
    same: dict[tuple[bool, bytes, bytes], dict[str, Pair]] = defaultdict(dict)
    for pair in pairs:
        text, codes = found.arrays[pair.record.text_ids_path], found.arrays[pair.record.codes_path]
        same[pair.validation, text.digest, codes.digest].setdefault(pair.target_id, pair)
    twice = []
    for first, *others in (list(group.items()) for group in same.values()):
        twice += [f"{pair.where}: text and codes of {first[0]}" for _, pair in others]
    if twice:
        text_found = f"{len(twice)} utterances occur twice under different names"
        yield data_finding("duplicates", "warning", text_found, "Leave one of each out.", twice)


def _leaks(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    validation = [pair for pair in pairs if pair.validation]
    if not validation:
        return
    leaked = [
        f"{pair.where}: target {pair.target_id} is also in the training set"
        for pair in _trained_targets(pairs, validation, found)
    ]
    if leaked:
        text = f"{len(leaked)} of {len(validation)} targets of the validation set are also in the training set"
        advice = "The validation loss would be too low. Split by utterance."
        yield data_finding("leakage", "warning", text, advice, leaked)
    else:
        yield data_finding(
            "leakage", "ok", f"none of the {len(validation)} targets of the validation set is in the training set"
        )


def _trained_targets(pairs: Sequence[Pair], validation: Sequence[Pair], found: Survey) -> Iterator[Pair]:
    """Pairs of the validation set whose target is also in the training set, by its name or by its codes."""
    train = [pair for pair in pairs if not pair.validation]
    names = {pair.target_id for pair in train}
    # By content too: a copy under another name leaks as much.
    codes = {found.arrays[pair.record.codes_path].digest for pair in train}
    for pair in validation:
        if pair.target_id in names or found.arrays[pair.record.codes_path].digest in codes:
            yield pair


def _speakers(train: Sequence[Pair]) -> Finding:
    counts = Counter(pair.speaker for pair in train).most_common()
    (most, many), (least, few) = counts[0], counts[-1]
    text = f"{len(counts)}, {few} ({least}) to {many} ({most}) pairs each"
    # A few speakers with equal shares are fine, so the share counts only among more of them.
    uneven = many / few > SPEAKERS_RATIO or (len(counts) > FEW_SPEAKERS and many / len(train) > SPEAKER_SHARE)
    advice = "Voices with few pairs are hardly learned. Take fewer pairs of the largest (pairs_per_target)."
    details = [f"{name}: {count} pairs" for name, count in counts] if uneven else ()
    return data_finding("speakers", "warning" if uneven else "ok", text, advice, details)


def _speakers_of_several_languages(train: Sequence[Pair]) -> Iterator[Finding]:
    languages: dict[str, set[str]] = defaultdict(set)
    for pair in train:
        languages[pair.speaker].add(pair.record.language)
    mixed = [f"{name}: {', '.join(sorted(filter(None, of)))}" for name, of in languages.items() if len(of) > 1]
    if mixed:
        text = f"{len(mixed)} speak several languages"
        yield data_finding("speakers", "warning", text, "Check the labels.", mixed)
