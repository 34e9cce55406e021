"""The check on several ranks, in little memory, and interrupted: the same codes and figures, or none."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from indextts_job.errors import MAX_FINDINGS_SHOWN, DataError, DeviceMemoryError
from indextts_job.model.batch import PackedBatch
from indextts_job.model.unified_voice import DeviceBatch, UnifiedVoice
from indextts_job.speaking.check import STEPS_PER_TURN, TOGETHER, Outcome, Ranks, SpeakingCheck
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.speaking.decoder import Utterance
from indextts_job.speaking.metrics import Scale
from indextts_job.speaking.script import Line, Script
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.engine import to_device
from tests.support.lockstep import on_ranks
from tests.support.models import SMALL_2_5, random_samples, small_model
from tests.support.speech import CPU, spoken

SCALE = Scale(codes_per_second=25, first_special=32)
LIMIT = 30


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    voice = small_model(4, config=SMALL_2_5).double().eval()
    with torch.no_grad():
        for parameter in voice.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return voice


def script(count: int = 9) -> Script:
    lines = [
        Line(
            key=sample.id,
            language=("am", "en")[number % 2],
            utterance=Utterance(sample=sample, limit=LIMIT, key=number),
            expected=float(len(sample.codes)),
            reference=tuple(sample.codes.tolist()),
        )
        for number, sample in enumerate(random_samples(count, 6, SMALL_2_5))
    ]
    return Script(lines=tuple(lines), fingerprint="x", stored=Counter())


def in_float64(batch: PackedBatch) -> DeviceBatch:
    return to_device(batch, CPU, torch.float64)


def outcome(
    model: UnifiedVoice, ranks: Ranks, mode: str = "greedy", place: object = in_float64, count: int = 9
) -> Outcome:
    config = SpeakingConfig(mode=mode)  # type: ignore[arg-type]
    check = SpeakingCheck(script(count), config, SCALE, seed=11)
    with torch.no_grad():
        found = check(model, place, ranks, 7, lambda _done: False)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_hears_the_same(model: UnifiedVoice, mode: str, ranks: int) -> None:
    alone = outcome(model, SingleProcess(), mode)
    for together in on_ranks(ranks, lambda group: outcome(model, group, mode)):
        assert [(one.key, one.codes, one.stopped) for one in together.heard] == [
            (one.key, one.codes, one.stopped) for one in alone.heard
        ]
        for one, other in zip(together.result.languages, alone.result.languages, strict=True):
            assert one.entropy == pytest.approx(other.entropy)
            assert replace(one, entropy=0.0) == replace(other, entropy=0.0)


def test_a_rank_without_utterances_waits_for_the_others(model: UnifiedVoice) -> None:
    alone = outcome(model, SingleProcess(), count=2)
    for together in on_ranks(3, lambda group: outcome(model, group, count=2)):
        assert [one.codes for one in together.heard] == [one.codes for one in alone.heard]


def test_the_codes_are_those_of_the_decoder_with_both_kinds_of_positions(model: UnifiedVoice) -> None:
    found = outcome(model, SingleProcess())
    given = [line.utterance for line in script().lines]
    assert [one.codes for one in found.heard] == [one.codes for one in spoken(model, given)]
    other = spoken(model, given, positions="training")
    assert [one.in_training for one in found.heard] == [one.codes for one in other]
    assert [one.language for one in found.result.languages] == ["am", "en"]
    assert [one.records for one in found.result.languages] == [5, 4]
    assert found.result.whole.records == 9


def test_what_is_drawn_has_no_agreement(model: UnifiedVoice) -> None:
    found = outcome(model, SingleProcess(), "sampled")
    assert found.result.whole.agreement is None
    assert found.result.whole.agreement_training_positions is None


def test_little_memory_makes_smaller_groups_and_the_same_codes(model: UnifiedVoice) -> None:
    sizes = []

    def short_of_memory(batch: PackedBatch) -> DeviceBatch:
        sizes.append(batch.num_samples)
        if batch.num_samples > 2:
            raise torch.OutOfMemoryError
        return in_float64(batch)

    found = outcome(model, SingleProcess(), place=short_of_memory)
    assert sizes == [9, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1], "what did not fit is not tried again"
    assert [one.codes for one in found.heard] == [one.codes for one in outcome(model, SingleProcess()).heard]


def test_no_memory_for_one_utterance_is_an_error_on_all_ranks(model: UnifiedVoice) -> None:
    def no_memory(batch: PackedBatch) -> DeviceBatch:
        raise torch.OutOfMemoryError

    def on(group: Ranks) -> str:
        with pytest.raises(DeviceMemoryError, match="this or another rank"):
            outcome(model, group, place=no_memory if group.rank == 1 else in_float64, count=TOGETHER + 1)
        return "raised"

    assert on_ranks(2, on) == ["raised", "raised"]


def test_scores_that_are_not_finite_are_an_error_on_all_ranks_and_name_their_records(model: UnifiedVoice) -> None:
    broken = random_samples(TOGETHER + 1, 6, SMALL_2_5)[-1].id  # of the group that the second rank speaks

    def spoiled(batch: PackedBatch) -> DeviceBatch:
        placed = in_float64(batch)
        rows = [number for number, name in enumerate(batch.sample_ids) if name == broken]
        placed.condition[rows] = torch.nan
        return placed

    def on(group: Ranks) -> str:
        with pytest.raises(DataError) as raised:
            outcome(model, group, place=spoiled, count=TOGETHER + 1)
        return str(raised.value)

    messages = on_ranks(2, on)
    assert messages[0] == messages[1]
    assert f"scores are not finite while the model speaks. Records: {broken}." in messages[0]


def test_scores_that_are_not_finite_with_the_positions_of_training_alone_are_an_error_too() -> None:
    voice = small_model(4, config=SMALL_2_5).double().eval()
    with torch.no_grad():
        voice.mel_pos_embedding.emb.weight[1] = torch.nan  # inference never uses this position
    with pytest.raises(DataError, match="scores are not finite"):
        outcome(voice, SingleProcess())


def test_of_many_records_whose_scores_are_not_finite_the_first_are_named(model: UnifiedVoice) -> None:
    def spoiled(batch: PackedBatch) -> DeviceBatch:
        placed = in_float64(batch)
        placed.condition[:] = torch.nan
        return placed

    with pytest.raises(DataError) as raised:
        outcome(model, SingleProcess(), place=spoiled, count=MAX_FINDINGS_SHOWN + 1)
    keys = sorted(line.key for line in script(MAX_FINDINGS_SHOWN + 1).lines)
    assert f"Records: {', '.join(keys[:-1])} …. Look" in str(raised.value)


def test_groups_are_those_of_the_script_however_many_ranks_share_them(model: UnifiedVoice) -> None:
    """A product may be rounded otherwise in a batch of another shape, and the rounding would decide between codes."""

    def sizes_on(group: Ranks) -> set[int]:
        sizes = set()

        def counting(batch: PackedBatch) -> DeviceBatch:
            sizes.add(batch.num_samples)
            return in_float64(batch)

        found = outcome(model, group, place=counting, count=2 * TOGETHER + 3)
        assert [one.key for one in found.heard] == [line.key for line in script(2 * TOGETHER + 3).lines]
        return sizes

    assert sizes_on(SingleProcess()) == {TOGETHER, 3}
    assert on_ranks(2, sizes_on) == [{TOGETHER, 3}, {TOGETHER}]


def test_the_precision_of_training_does_not_decide_between_codes() -> None:
    """In 16 bit rounding would, and with the codes about the best checkpoint."""
    voice = small_model(4, config=SMALL_2_5).float().eval()

    def in_float32(batch: PackedBatch) -> DeviceBatch:
        return to_device(batch, CPU, torch.float32)

    plain = outcome(voice, SingleProcess(), place=in_float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outcome(voice, SingleProcess(), place=in_float32)
    assert [(one.codes, one.entropy) for one in mixed.heard] == [(one.codes, one.entropy) for one in plain.heard]


def test_a_reference_that_does_not_fit_into_the_limit_is_not_missed_for_its_stop(model: UnifiedVoice) -> None:
    lines = [replace(line, expected=float(LIMIT - number)) for number, line in enumerate(script(2).lines)]
    given = Script(lines=tuple(lines), fingerprint="x", stored=Counter())
    with torch.no_grad():
        check = SpeakingCheck(given, SpeakingConfig(mode="greedy"), SCALE, seed=11)
        found = check(model, in_float64, SingleProcess(), 7, lambda _done: False)
    assert found is not None
    assert [one.may_stop for one in found.heard] == [False, True]


def test_a_stop_while_the_figures_are_computed_leaves_none(model: UnifiedVoice) -> None:
    one_language = replace(script(), lines=tuple(replace(line, language="am") for line in script().lines))

    def asked_until(turn: int, given: Script) -> tuple[Outcome | None, int]:
        asked: list[int] = []

        def interrupted(done: int) -> bool:
            asked.append(done)
            return len(asked) == turn

        check = SpeakingCheck(given, SpeakingConfig(mode="greedy"), SCALE, seed=11)
        with torch.no_grad():
            return check(model, in_float64, SingleProcess(), 7, interrupted), len(asked)

    whole, turns = asked_until(0, script())
    assert whole is not None
    assert turns == asked_until(0, one_language)[1] + 1, "asked before the figures of each language"
    # Of each of the two languages and of the whole.
    assert [asked_until(turn, script()) for turn in (turns - 2, turns - 1, turns)] == [
        (None, turns - 2),
        (None, turns - 1),
        (None, turns),
    ]


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_a_stop_ends_it_within_a_turn_on_all_ranks(model: UnifiedVoice, turns: int) -> None:
    def speak_on(group: Ranks) -> int:
        asked: list[int] = []

        def interrupted(done: int) -> bool:
            asked.append(done)
            return len(asked) > turns

        check = SpeakingCheck(script(), SpeakingConfig(mode="greedy"), SCALE, seed=11)
        with torch.no_grad():
            assert check(model, in_float64, group, 7, interrupted) is None
        return len(asked)

    assert turns * STEPS_PER_TURN < 2 * LIMIT, "the test stops in the middle"
    assert on_ranks(2, speak_on) == [turns + 1] * 2


def test_each_utterance_is_a_line_of_json(model: UnifiedVoice) -> None:
    found = outcome(model, SingleProcess())
    lines = [json.loads(line) for line in found.lines()]
    assert [line["key"] for line in lines] == [one.key for one in found.heard]
    assert [line["codes"] for line in lines] == [list(one.codes) for one in found.heard]
    assert [line["length"] for line in lines] == [len(one.codes) for one in found.heard]
