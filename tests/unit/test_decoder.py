"""The decoder speaks the codes that the releases' own generation speaks, with its positions and its penalty."""

import math

import pytest
import torch
from torch import Tensor

from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.speaking.choice import Choice, Sampling, drawn, highest, penalised, sampled, uniforms_of
from indextts_job.speaking.decoder import Utterance, speak
from indextts_job.training.engine import to_device
from tests.support.models import SMALL, SMALL_2_5, golden_model, golden_sample, random_samples, small_model
from tests.support.speech import CPU, spoken, utterances

STOP = 33
PENALTY_10 = [13, 12, 20, 29, 0, 24, 28, 25, STOP]
PENALTY_1 = [13, 12, 20, 29, 29, 24, 24, 0, 29, 24, 24, 4, 29, 24, 28, 4, 29, 20, 28, 4]
TRAINING_10 = [13, 21, 20, 24, 25, 29, 28, 16, 4, 0, 3, 12, 8, 17, STOP]
"""With training's positions: upstream never speaks them."""
A_2_0 = [5, 21, 4, 25, 9, 17, STOP]
"""Sample A of the other version, penalty 10, by upstream's own generation."""


def golden_codes(config: GPTConfig, choice: Choice, positions: str = "inference") -> list[int]:
    sample = golden_sample(5, 9, 0, config)
    given = [Utterance(sample=sample, limit=20)]
    (found,) = spoken(golden_model(config).eval(), given, choice, positions)  # type: ignore[arg-type]
    return [*found.codes, *([STOP] if found.stopped else [])]


def test_golden_codes_of_the_release() -> None:
    assert golden_codes(SMALL_2_5, Choice(penalty=10.0)) == PENALTY_10
    assert golden_codes(SMALL_2_5, Choice(penalty=1.0)) == PENALTY_1
    assert golden_codes(SMALL, Choice(penalty=10.0)) == A_2_0


def test_the_positions_of_training_give_other_codes() -> None:
    assert golden_codes(SMALL_2_5, Choice(penalty=10.0), "training") == TRAINING_10


def uncached(model: UnifiedVoice, sample: Sample, limit: int) -> list[int]:
    """Greedy codes, the whole sequence computed anew for each, with the table of positions shifted by hand."""
    codes: list[int] = []
    rows = model.mel_pos_embedding.emb.weight
    shifted = torch.cat([rows[:1], rows[2:], rows[:1]])
    before = rows.detach().clone()
    rows.data.copy_(shifted)
    try:
        while len(codes) < limit and STOP not in codes:
            whole = Sample(
                index=0,
                id="",
                text_ids=sample.text_ids,
                codes=torch.tensor(codes, dtype=torch.int64).numpy(),
                condition=sample.condition,
                emotion=sample.emotion,
                language_row=sample.language_row,
            )
            hidden = model.hidden_states(to_device(collate([whole], model.config), CPU, torch.float64))
            codes.append(int(model.mel_head(hidden[-1]).argmax()))
    finally:
        rows.data.copy_(before)
    return codes


@pytest.mark.parametrize("config", [SMALL, SMALL_2_5], ids=["2.0", "2.5"])
@torch.no_grad()
def test_with_a_cache_the_codes_are_those_without_one(config: GPTConfig) -> None:
    model = lively(config)
    samples = random_samples(6, 1, config)
    cached = spoken(model, utterances(samples, 30))
    assert len({one.codes for one in cached}) > 3
    for sample, found in zip(samples, cached, strict=True):
        expected = uncached(model, sample, 30)
        assert [*found.codes, *([STOP] if found.stopped else [])] == expected


def lively(config: GPTConfig, seed: int = 0) -> UnifiedVoice:
    """A random model with weights large enough to say different things."""
    model = small_model(seed, config=config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


@pytest.mark.parametrize("config", [SMALL, SMALL_2_5], ids=["2.0", "2.5"])
@pytest.mark.parametrize("choice", [Choice(), sampled(7)], ids=["greedy", "sampled"])
def test_the_size_of_a_group_and_its_order_change_no_code(config: GPTConfig, choice: Choice) -> None:
    model = lively(config)
    given = utterances(random_samples(9, 2, config), 30)
    alone = spoken(model, given, choice, group=1)
    assert len({one.codes for one in alone}) > 4
    for group in (2, 4, 9):
        together = spoken(model, given, choice, group=group)
        assert [(one.codes, one.stopped) for one in together] == [(one.codes, one.stopped) for one in alone]
        assert [one.entropy for one in together] == pytest.approx([one.entropy for one in alone])
    backwards = spoken(model, given[::-1], choice)
    assert [one.codes for one in backwards[::-1]] == [one.codes for one in alone]


def test_what_is_drawn_depends_on_the_seed_and_the_key_alone() -> None:
    model, samples = lively(SMALL_2_5), random_samples(6, 3, SMALL_2_5)
    first = spoken(model, utterances(samples, 30), sampled(1))
    assert spoken(model, utterances(samples, 30), sampled(1)) == first
    assert [one.codes for one in spoken(model, utterances(samples, 30), sampled(2))] != [one.codes for one in first]


def test_limits_are_those_of_each_utterance() -> None:
    model, samples = golden_model(SMALL_2_5).eval(), [golden_sample(5, 9, 0, SMALL_2_5)] * 3
    given = [Utterance(sample=sample, limit=limit) for sample, limit in zip(samples, (3, 20, 1), strict=True)]
    found = spoken(model, given)
    assert [len(one.codes) for one in found] == [3, 20, 1]
    assert not any(one.stopped for one in found)
    assert list(found[1].codes) == PENALTY_1


def test_a_caller_is_asked_between_all_codes() -> None:
    model = golden_model(SMALL_2_5).eval()
    given = [Utterance(sample=golden_sample(5, 9, 0, SMALL_2_5), limit=20)]
    with torch.no_grad():
        speaking = speak(model, given, lambda batch: to_device(batch, CPU, torch.float64), Choice(penalty=10.0))
        assert len(list(speaking)) == len(PENALTY_10)


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_not() -> None:
    scores = torch.tensor([[4.0, -4.0, 2.0, -2.0]])
    history = torch.tensor([[True, True, False, False]])
    assert penalised(scores, history, 10.0).tolist() == [[pytest.approx(0.4), -40.0, 2.0, -2.0]]


def test_of_equal_scores_the_lowest_code_is_taken() -> None:
    assert highest(torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])).tolist() == [1, 0]


def test_a_score_that_is_no_number_is_below_all_others_and_a_code_is_taken_in_every_case() -> None:
    nan, infinite = torch.nan, torch.inf
    assert highest(torch.tensor([[nan, 1.0, nan, 2.0], [nan, 1.0, 2.0, 1.0]])).tolist() == [3, 2]
    assert highest(torch.tensor([[nan] * 4, [-infinite] * 4, [nan, -infinite, infinite, nan]])).tolist() == [0, 0, 2]


@torch.no_grad()
def test_a_code_that_is_never_spoken_adds_nothing_to_the_entropy() -> None:
    model = lively(SMALL_2_5)
    model.mel_head.bias[5] = -torch.inf
    for one in spoken(model, utterances(random_samples(3, 1, SMALL_2_5), 10)):
        assert 5 not in one.codes
        assert 0 < one.entropy < math.log(34)


@torch.no_grad()
def test_what_comes_after_the_end_of_an_utterance_is_not_in_its_entropy() -> None:
    """It is computed beside the others of its group until they end, and its scores may be anything then."""
    model, samples = golden_model(SMALL_2_5).eval(), [golden_sample(5, 9, 0, SMALL_2_5)] * 2
    model.mel_pos_embedding.emb.weight[12] = torch.nan
    short, long = spoken(model, [Utterance(sample=samples[0], limit=3), Utterance(sample=samples[1], limit=20)])
    alone = spoken(model, [Utterance(sample=samples[0], limit=3)])[0]
    assert short.entropy == pytest.approx(alone.entropy)
    assert math.isnan(long.entropy)


def shares(scores: Tensor, sampling: Sampling, count: int = 4000) -> list[float]:
    """How often each code is drawn for evenly spread numbers."""
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    codes = drawn(scores.expand(count, -1), sampling, numbers)
    return [float(share) for share in torch.bincount(codes, minlength=scores.shape[1]) / count]


def test_top_k_and_top_p_keep_the_likeliest_codes_in_their_proportions() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2]], dtype=torch.float64).log()
    everything = Sampling(temperature=1.0, top_k=4, top_p=1.0)
    assert shares(scores, everything) == pytest.approx([0.1, 0.4, 0.3, 0.2], abs=1e-3)
    two = Sampling(temperature=1.0, top_k=2, top_p=1.0)
    assert shares(scores, two) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=1e-3)
    # 0.4 + 0.3 reach 0.6, so the two others go; the first code that reaches the share stays.
    most = Sampling(temperature=1.0, top_k=4, top_p=0.6)
    assert shares(scores, most) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=1e-3)
    cold = Sampling(temperature=0.5, top_k=4, top_p=1.0)
    assert shares(scores, cold) == pytest.approx([0.01 / 0.3, 0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3], abs=1e-3)


def test_a_number_next_to_one_draws_a_code_that_is_kept() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, -1.0]], dtype=torch.float64)
    almost = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert drawn(scores, Sampling(temperature=1.0, top_k=3, top_p=1.0), almost).tolist() == [2]


def test_the_numbers_are_spread_evenly() -> None:
    values = uniforms_of(3, range(4000), 5)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert torch.histc(values, 10, 0, 1).tolist() == pytest.approx([400.0] * 10, rel=0.2)
