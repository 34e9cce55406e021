"""What the plan expects its largest micro-batch to take, against what it takes.

Computed by row `plan` of `bench.first_ten_minutes`, so that a real card is asked the same.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_stand_in.attempts import CARDS, ended
from tests.gpu_stand_in.cards import SMALL, Card
from tests.gpu_stand_in.environment import StandIn, started

LEAST, MOST = 1.0, 1.15
"""Expected bytes over the peak: below, a step runs out of memory; above, a micro-batch is smaller than it could be."""

SEVERAL_CLIPS = 2000
"""Rows of five clips of 8.5 s in Amharic."""


def row(stand_in: StandIn, card: Card, folder: Path, *more: str) -> dict[str, Any]:
    arguments = ("-m", "bench.first_ten_minutes", "--rows", "plan", "--rounds", "1", "--out", str(folder), *more)
    with started(stand_in.variables(card), *arguments) as child:
        code, output = ended(child)
    assert code == 0, output
    (line,) = (folder / "first_ten_minutes.jsonl").read_text(encoding="utf-8").splitlines()
    values: dict[str, Any] = json.loads(line)["values"]
    return values


@pytest.mark.parametrize("model", ["2.0", "2.5"])
@pytest.mark.parametrize("card", CARDS, ids=str)
def test_the_plan_expects_what_its_largest_micro_batch_takes(
    stand_in: StandIn, tmp_path: Path, card: Card, model: str
) -> None:
    found = row(stand_in, card, tmp_path, "--model", model)
    assert found["fits"], found
    assert LEAST <= found["predicted_over_peak"] <= MOST, found


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["2.0", "2.5"])
@pytest.mark.parametrize("card", SMALL, ids=str)
def test_an_adapter_fits_a_small_card(stand_in: StandIn, tmp_path: Path, card: Card, model: str, base: str) -> None:
    found = row(stand_in, card, tmp_path, "--model", model, "--adapter-rank", "32", "--base-dtype", base)
    assert found["fits"], found
    assert LEAST <= found["predicted_over_peak"] <= MOST, found
    assert found["tokens"] > SEVERAL_CLIPS
