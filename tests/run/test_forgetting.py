"""`demo forgetting`: what it says of its runs, and the whole of it."""

import pytest

from indextts_job.cli import main
from indextts_job.demo.forgetting import AS_GOOD, BOUND, Validation, due_stop, kept
from indextts_job.errors import EXIT_CONFIG, EXIT_OK


def validations(*rises: float, new: float = 1.0) -> list[Validation]:
    return [Validation(step, new, BOUND + rise, 0.01) for step, rise in enumerate(rises)]


@pytest.mark.parametrize(
    ("rises", "step"),
    [
        ((0.1, 0.1, 0.1), 2),
        ((0.1, 0.1, 0.0, 0.1, 0.1, 0.1), 5),
        ((0.1, 0.1), None),
        ((0.02, 0.02, 0.02), None),  # two standard errors above: not beyond doubt
        ((0.021, 0.021, 0.021, 0.1), 2),
    ],
)
def test_a_guard_stops_at_the_third_validation_in_a_row_above_the_bound(
    rises: tuple[float, ...], step: int | None
) -> None:
    assert due_stop(validations(*rises)) == step


def test_kept_means_inside_the_bound_at_equal_loss() -> None:
    alone = validations(1.0)
    assert kept(validations(0.0), alone)
    assert not kept(validations(0.1), alone)
    assert not kept(validations(0.0, new=AS_GOOD + 0.001), alone)


def test_the_demo_forgets_without_replay_and_not_with_it(
    tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "forgetting", "--folder", str(folder)]) == EXIT_OK, capfd.readouterr().out
    told = capfd.readouterr().out
    assert told.count("  yes  ") == 4
    page = folder / "page.html"
    assert main(["status", str(folder / "replayed"), "--html", str(page)]) == EXIT_OK
    assert "Rise above the base" in page.read_text(encoding="utf-8")


def test_what_the_demo_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "forgetting", "--model", "2.5"]) == EXIT_CONFIG
    assert "no --url and no --model" in capsys.readouterr().err
