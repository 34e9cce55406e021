"""`demo speaking`: what it says of its runs, and the whole of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indextts_job.cli import main
from indextts_job.demo.faulty_trainer import PADDING, plant
from indextts_job.demo.speaking import (
    AS_GOOD,
    Heard,
    checks_of,
    explained_by,
    make_speaking_world,
    rewritten,
    with_tail,
)
from indextts_job.errors import EXIT_CONFIG, EXIT_OK
from indextts_job.model import batch
from tests.support.archived import records
from tests.support.models import SMALL, random_samples


def heard(total: float, *broken: str) -> Heard:
    return Heard(total, tuple(f"am: {name} 32 of 32" for name in broken), {})


RUNS = {
    "healthy": heard(1.0),
    "stops": heard(1.0, "no_stop", "length_ratio"),
    "tails": heard(0.9, "silence", "loops"),
    "wrong": heard(1.0, "length_ratio", "distinct", "early_stop"),
}


@pytest.mark.parametrize(
    ("name", "run", "wrong"),
    [
        ("healthy", heard(1.0, "loops"), 0),
        ("tails", heard(1.01 * AS_GOOD, "silence", "loops"), 1),
        ("stops", heard(1.0, "no_stop"), 2),
        ("tails", heard(0.9, "silence"), 3),
        ("wrong", heard(1.0, "length_ratio"), 4),
    ],
)
def test_each_sentence_wants_what_it_says(name: str, run: Heard, wrong: int) -> None:
    assert all(good for good, _ in checks_of(RUNS))
    assert [good for good, _ in checks_of({**RUNS, name: run})] == [place != wrong for place in range(5)]


def test_the_explanation_names_the_lowest_loss_and_its_fault() -> None:
    lines = ["400  0.1", "step 400 has a lower loss (0.1) but speaks badly: am: no_stop 32 of 32", "/run/checkpoint"]
    assert explained_by(lines, best=240, lowest=400)
    assert not explained_by(lines, best=400, lowest=400)
    assert not explained_by(lines, best=240, lowest=320)
    assert not explained_by([lines[1].replace("no_stop", "loops")], best=240, lowest=400)


def test_faults_are_planted_in_the_data_alone(tmp_path: Path) -> None:
    spoken = make_speaking_world(tmp_path / "world", 7)
    tails = rewritten(spoken, "tails", with_tail, "lb")
    assert (tails.train, tails.validation) != (spoken.train, spoken.validation)
    for before, after in zip(records(spoken.validation), records(tails.validation), strict=True):
        assert after["target_text"] == before["target_text"]
        assert after["prompt_speaker_path"] == before["prompt_speaker_path"]
        assert (before["target_language"], after["target_language"]) == ("am", "lb")
        codes = [np.load(spoken.train.parent / record["target_codes_path"]) for record in (before, after)]
        assert codes[1].tolist() == [*codes[0].tolist(), *([3] * 40)]
        assert after["target_code_len"] == len(codes[1])


def test_the_faulty_trainer_has_padding_where_a_stop_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[Any] = random_samples(4)
    healthy = batch.collate(samples, SMALL).code_targets.tolist()
    monkeypatch.setattr(batch, "_arrays", batch._arrays)
    plant()
    faulty = batch.collate(samples, SMALL).code_targets.tolist()
    assert faulty == [PADDING if code == SMALL.stop_mel_token else code for code in healthy]
    assert healthy.count(SMALL.stop_mel_token) == 4


def test_the_demo_hears_what_no_loss_shows(
    tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "speaking", "--folder", str(folder)]) == EXIT_OK, capfd.readouterr().out
    told = capfd.readouterr().out
    assert told.count("  yes  ") == 6
    assert "--explain says why" in told


def test_what_the_demo_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "speaking", "--model", "2.5"]) == EXIT_CONFIG
    assert "demo speaking has a folder only" in capsys.readouterr().err
