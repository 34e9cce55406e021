"""What a preparation will be: counts, hours, units, cost and bytes, and what is suspicious about texts and speakers.

Loads no model and opens no audio.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from indextts_job.model.config import GPTConfig
from indextts_job.prepare.config import PrepareConfig
from indextts_job.prepare.split import split_of
from indextts_job.prepare.text_checks import Spoken, refusal, usual_scripts, warnings
from indextts_job.prepare.utterances import Utterance
from indextts_job.prepare.worker import FEWEST_UNITS_OF_WORKER
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.tokenizer.encoding import ids_as_spelt
from indextts_job.tokenizer.loading import Tokenizer

GFLOP_PER_SECOND = {"2.0": 61.0, "2.5": 53.0}
"""Of audio: w2v-BERT 43, codec, conditioning encoders, CAMPPlus. Estimates from the sizes of the layers."""
SUSTAINED_TFLOPS = (5.0, 10.0)
"""What float32 without TF32 sustains on cloud GPUs, slow and fast; an estimate."""
UNEVEN, DOMINANT = 20.0, 0.3
"""Ratio of the largest speaker to the smallest, and share of one speaker, beyond which voices are learned unevenly."""
EXAMPLES = 3


def plan_lines(
    utterances: Sequence[Utterance], config: PrepareConfig, model: GPTConfig, tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[str, bool]]:
    """The plan in lines, and whether each is a warning.

    Args:
        utterances: The work list.
        config: The settings.
        model: The model in its version.
        tokenizer: Its tokenizer.
        workers: Number of workers that will share the work.
    """
    known = [one.duration_s for one in utterances if one.duration_s is not None]
    yield f"{len(utterances)} utterances ({_languages(utterances)}), {_splits(utterances, config)}", False
    if known:
        yield from _cost(float(np.mean(known)) * len(utterances), model)
    if len(known) < len(utterances):
        yield (
            f"{len(utterances) - len(known)} records without a duration: a clip cut short looks like a whole one",
            True,
        )
    yield from _units(utterances, config, model, workers)
    yield from _outside(known, config)
    yield from _missing(config)
    yield from _speakers(utterances)
    yield from _texts(utterances, model, tokenizer)


def _languages(utterances: Sequence[Utterance]) -> str:
    counts = Counter(one.language or "no language" for one in utterances)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _splits(utterances: Sequence[Utterance], config: PrepareConfig) -> str:
    counts = Counter(split_of(one, config.validation) for one in utterances)
    return f"{counts['train']} to train and {counts['val']} to validate"


def _outside(known: Sequence[float], config: PrepareConfig) -> Iterator[tuple[str, bool]]:
    """Durations of the manifests that will be refused."""
    least, most = config.audio.min_seconds, config.audio.max_seconds
    outside = sum(not least <= seconds <= most for seconds in known)
    if outside:
        yield f"{outside} records last less than {least:g} or more than {most:g} s, and will be refused", True


def _missing(config: PrepareConfig) -> Iterator[tuple[str, bool]]:
    """Files of the encoders that are not there."""
    named = {f"encoders.{key}": str(value) for key, value in asdict(config.encoders).items() if key != "hidden_state"}
    named["encoders.w2v_bert"] = f"{config.encoders.w2v_bert.rstrip('/')}/model.safetensors"
    named["model.base_checkpoint"] = config.model.base_checkpoint
    for key in filter(named.get, named):
        if not files.exists(named[key]):
            yield f"{key}: {redacted(named[key])} is not there", True


def _units(
    utterances: Sequence[Utterance], config: PrepareConfig, model: GPTConfig, workers: int
) -> Iterator[tuple[str, bool]]:
    units = -(-len(utterances) // config.unit)
    yield (
        f"{units} units of {config.unit}, {_bytes(len(utterances), model) / 2**30:.2f} GiB of conditions and emotions",
        False,
    )
    if workers > 1 and units < FEWEST_UNITS_OF_WORKER * workers:
        yield (
            f"{units / workers:.0f} units for each of {workers} workers: many will wait at the end; lower `unit`",
            True,
        )


def _cost(seconds: float, model: GPTConfig) -> Iterator[tuple[str, bool]]:
    flop = seconds * GFLOP_PER_SECOND[model.version.name] * 1e9
    slow, fast = (flop / (rate * 1e12) / 3600 for rate in SUSTAINED_TFLOPS)
    yield (
        f"{seconds / 3600:.1f} h of audio, {flop / 1e15:.1f} PFLOP: {fast:.1f} to {slow:.1f} h on one GPU (estimate)",
        False,
    )


def _bytes(utterances: int, model: GPTConfig) -> int:
    return utterances * 4 * (int(np.prod(model.speaker_shape)) + model.model_dim)


def _speakers(utterances: Sequence[Utterance]) -> Iterator[tuple[str, bool]]:
    counts = Counter(one.speaker for one in utterances)
    (largest, most), least = counts.most_common(1)[0], min(counts.values())
    yield f"{len(counts)} speakers with {least} to {most} utterances", False
    if most / least > UNEVEN:
        yield f"the largest speaker has {most / least:.0f} times the utterances of the smallest", True
    if len(counts) > 1 and most > DOMINANT * len(utterances):
        yield f"{largest} speaks {most / len(utterances):.0%} of the utterances", True
    lone = sorted(name for name, count in counts.items() if count == 1)
    if lone:
        yield f"{len(lone)} speakers with one utterance, which gets no prompt: {', '.join(lone[:EXAMPLES])}", True


def _texts(utterances: Sequence[Utterance], model: GPTConfig, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Findings about texts; each with the number of utterances and some ids."""
    found: dict[str, list[str]] = {}
    scripts = usual_scripts((one.language, one.text) for one in utterances)
    for one in utterances:
        spoken = _spoken(one, tokenizer)
        reason = refusal(spoken, model.max_text_tokens) if one.duration_s or not one.text else ""
        for what in [reason and "refused: transcript and audio", *warnings(spoken, None, scripts)]:
            if what:
                found.setdefault(what, []).append(one.id)
    for what, names in sorted(found.items()):
        yield f"{what}: {len(names)} utterances, {', '.join(names[:EXAMPLES])}", True


def _spoken(one: Utterance, tokenizer: Tokenizer) -> Spoken:
    ids = ids_as_spelt(tokenizer, one.text, one.language) if one.text else []
    return Spoken(one.text, one.language, ids, one.duration_s or 1.0, None)
