"""Goals that a run has to reach by a step."""

import pytest

from indextts_job.checkpoint.history import Losses, Validation
from indextts_job.errors import ConfigError
from indextts_job.training.quality import parse_goals


def validations(*text_losses: float) -> list[Validation]:
    return [
        Validation(step=1000 * number, losses=Losses(text_loss=loss, mel_loss=4.0, mel_top1=loss / 10, total=loss))
        for number, loss in enumerate(text_losses, start=1)
    ]


def test_a_goal_is_missed_when_its_step_has_come() -> None:
    (goal,) = parse_goals(["text_loss < 3.0 by 3000"])
    assert goal.missed([]) == ""
    assert goal.missed(validations(5.0, 4.8)) == ""
    missed = goal.missed(validations(5.0, 4.5, 4.6))
    assert missed == "the goal text_loss < 3 by step 3000 is missed: the best so far is 4.5, at step 2000"
    assert goal.missed(validations(5.0, 2.9, 3.1)) == ""  # reached once is reached
    assert goal.missed(validations(5.0, 4.5, 4.6, 4.7))


def test_a_share_has_to_rise() -> None:
    (goal,) = parse_goals(["mel_top1>0.4 by 2000"])
    assert goal.missed(validations(3.0, 3.9))
    assert not goal.missed(validations(4.1, 3.9))


@pytest.mark.parametrize(
    "text", ["", "text_loss < 3", "loss < 3 by 5", "text_loss <= 3 by 5", "text_loss < x by 5", "text_loss < 1e by 5"]
)
def test_what_is_no_goal_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"`text_loss < 3.0 by 5000`, say"):
        parse_goals([text])


def test_a_goal_may_count_from_where_the_run_began() -> None:
    (goal,) = parse_goals(["text_loss < 3.0 by +5000"], 38_000)
    assert goal.step == 43_000
    assert parse_goals(["text_loss < 3.0 by 5000"], 38_000)[0].step == 5000
