"""Which prompts a target gets: the rules, and that nobody's pairs change for what others add."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.prepare.config import PairsConfig, SplitConfig
from indextts_job.prepare.pairing import LEAST_PROMPT_S, Candidate, pair
from indextts_job.prepare.split import split_of
from indextts_job.prepare.utterances import Utterance

candidates = st.builds(
    Candidate,
    place=st.just(0),
    id=st.uuids().map(str),
    speaker=st.sampled_from(["one", "two", "three"]),
    language=st.sampled_from(["am", "en"]),
    text=st.sampled_from(["a", "b", "c", "d", "e"]),
    audio_sha256=st.sampled_from(["0", "1", "2", "3", "4", "5"]),
    seconds=st.sampled_from([1.0, 2.0, 5.0]),
)
lists = st.lists(candidates, max_size=40, unique_by=lambda one: one.id)
configs = st.builds(
    PairsConfig,
    per_target=st.integers(1, 4),
    cross_lingual=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 9),
)


def suitable(target: Candidate, prompt: Candidate) -> bool:
    return (
        prompt.speaker == target.speaker
        and prompt.id != target.id
        and prompt.audio_sha256 != target.audio_sha256
        and prompt.text != target.text
        and prompt.seconds >= LEAST_PROMPT_S
    )


@given(lists, configs)
def test_every_target_gets_suitable_prompts_as_many_as_there_are(given: list[Candidate], config: PairsConfig) -> None:
    for target, prompts in pair(given, config):
        possible = [one for one in given if suitable(target, one)]
        if config.cross_lingual == 0:
            possible = [one for one in possible if one.language == target.language]
        assert all(one in possible for one in prompts)
        assert len({one.id for one in prompts}) == len(prompts)
        if config.cross_lingual == 0:
            assert len(prompts) == min(config.per_target, len(possible))
        elif config.cross_lingual == 1 or any(one.language == target.language for one in possible):
            assert bool(prompts) == bool(possible)


@given(lists, lists, configs)
def test_new_speakers_change_nobodys_pairs(given: list[Candidate], more: list[Candidate], config: PairsConfig) -> None:
    added = [replace(one, speaker=f"new-{one.speaker}") for one in more]
    before = {target.id: prompts for target, prompts in pair(given, config)}
    after = {target.id: prompts for target, prompts in pair([*added, *given], config)}
    assert {name: after[name] for name in before} == before


def test_a_text_that_is_read_out_alike_is_no_other_text() -> None:
    """Another form of the same characters, capitals and spaces are not heard: such a prompt would hold the answer."""
    texts = ("Él canta  ya", "él canta ya", " E\u0301L CANTA\tYA", "Straße", "STRASSE", "el canta ya")
    given = [Candidate(0, str(number), "one", "es", text, str(number), 3.0) for number, text in enumerate(texts)]
    found = {target.id: {prompt.id for prompt in prompts} for target, prompts in pair(given, PairsConfig(per_target=9))}
    alike = [{"0", "1", "2"}, {"3", "4"}, {"5"}]
    for group in alike:
        for name in group:
            assert found[name] == {"0", "1", "2", "3", "4", "5"} - group


def crowd(speakers: int, each: int, languages: tuple[str, ...] = ("am",)) -> list[Candidate]:
    return [
        Candidate(0, f"{speaker}-{number}", str(speaker), languages[number % len(languages)], f"t{number}",
                  f"{speaker}-{number}", 3.0)
        for speaker in range(speakers)
        for number in range(each)
    ]  # fmt: skip


def test_draws_reach_everybody_and_depend_on_the_seed() -> None:
    given = crowd(4, 50)
    first = list(pair(given, PairsConfig()))
    counts = Counter(prompt.id for _, prompts in first for prompt in prompts)
    assert sum(counts.values()) == 400
    assert len(counts) > 150  # of 200, by chance 173
    assert max(counts.values()) < 12
    assert first != list(pair(given, PairsConfig(seed=1)))
    assert first == list(pair(given, PairsConfig(seed=2025)))


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_prompts_cross_languages_as_often_as_wanted(share: float) -> None:
    found = [
        prompt.language != target.language
        for target, prompts in pair(crowd(4, 60, ("am", "en")), PairsConfig(cross_lingual=share))
        for prompt in prompts
    ]
    assert abs(sum(found) / len(found) - share) < 0.06


def utterance(name: str, speaker: str = "s", split: str = "") -> Utterance:
    return Utterance(
        id=name, audio="a", url="a", text="t", speaker=speaker, language="am", duration_s=None, split=split,  # type: ignore[arg-type]
        origin="m:1",
    )  # fmt: skip


def test_the_split_is_that_of_the_public_preprocessing() -> None:
    """SHA-1 of the id modulo a million, below the ratio: `data.md` part 3."""
    config = SplitConfig(ratio=0.3)
    found = [split_of(utterance(f"utt_{number:05d}"), config) for number in range(1000)]
    assert found.count("val") == pytest.approx(300, abs=45)
    assert [split_of(utterance(name), SplitConfig(ratio=r)) for name, r in EXPECTED] == ["train", "val"] * 2


def _place(name: str) -> int:
    import subprocess

    digits = subprocess.run(["sha1sum"], input=name.encode(), capture_output=True, check=True).stdout.split()[0]
    return int(digits, 16) % 10**6


EXPECTED = [
    (name, ratio) for name in ("utt_00000", "utt_00003") for ratio in (_place(name) / 10**6, (_place(name) + 1) / 10**6)
]


def test_a_speaker_is_in_one_split_and_records_have_precedence() -> None:
    config = SplitConfig(ratio=0.5, by="speaker")
    for speaker in map(str, range(30)):
        assert len({split_of(utterance(str(number), speaker), config) for number in range(9)}) == 1
    assert {split_of(utterance("x", str(speaker)), config) for speaker in range(30)} == {"train", "val"}
    assert split_of(utterance("x", split="val"), SplitConfig(ratio=0)) == "val"
    assert split_of(utterance("x", split="train"), SplitConfig(ratio=1)) == "train"
