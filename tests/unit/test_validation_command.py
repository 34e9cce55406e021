"""The command at validations: which checkpoints it gets, in which order, and how it is ended.

Its programs are real ones. The export before each is one that ends well at once: `tests/run/test_validation_command.py`
has the real one.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from indextts_job.attempt.validation_command import ValidationCommand, figures_of
from indextts_job.checkpoint.history import Losses
from indextts_job.report.events import Committed, Event, Figures, Notice, Validated
from tests.support.waiting import wait_until

PYTHON = sys.executable
LONGEST_S = 60.0
LOSSES = Losses(text_loss=1.0, mel_loss=1.0, mel_top1=0.5, total=1.0)


@pytest.fixture(autouse=True)
def exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "true")


def validated(step: int) -> Validated:
    return Validated(step=step, losses=LOSSES, best=True, samples=1, seconds=1.0)


def committed(step: int) -> Committed:
    return Committed(
        step=step, name=f"step-{step}", tags=(), bytes_written=0, bytes_total=0, seconds=0.0, stall_seconds=0.0
    )


class Told:
    """Hears the command, and lets the thread that tells a first result wait until it is released."""

    def __init__(self, *, holds: bool = False) -> None:
        self.messages: list[str] = []
        self.events: list[Event] = []
        self.holding, self.released = threading.Event(), threading.Event()
        if not holds:
            self.released.set()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Notice):
            self.messages.append(event.message + (" !" if event.warning else ""))
        if threading.current_thread() is not threading.main_thread():
            self.holding.set()
            assert self.released.wait(LONGEST_S)


def command(emit: Callable[[Event], None], program: str, *more: str) -> ValidationCommand:
    return ValidationCommand([PYTHON, "-c", program, *more], LONGEST_S, "run", (), emit)


PRINTS = ("import sys; print('heard', sys.argv[1])", "{step}")


def test_of_the_checkpoints_that_come_meanwhile_the_newest_gets_its_turn() -> None:
    told = Told(holds=True)
    reader = command(told, *PRINTS)
    for step in (1, 2, 3):
        reader(validated(step))
        reader(committed(step))
        assert told.holding.wait(LONGEST_S)
    assert told.messages == ["step 1: heard 1", "step 2: a newer one came before its turn; it is passed over !"]
    told.released.set()
    reader.finish(lambda: False)
    assert told.messages[2:] == ["step 3: heard 3"]
    # It goes on with what comes later.
    reader = command(told, *PRINTS)
    for step in (4, 5):
        reader(validated(step))
        reader(committed(step))
        wait_until(lambda: len(told.messages) == step, "the command has run")  # noqa: B023
    assert told.messages[3:] == ["step 4: heard 4", "step 5: heard 5"]


def test_a_checkpoint_may_come_behind_the_next_validation() -> None:
    told = Told()
    reader = command(told, *PRINTS)
    events: list[Event] = [committed(3), validated(5), validated(10), validated(15)]
    for event in (*events, committed(10), committed(10), committed(5), committed(12)):
        reader(event)
    wait_until(lambda: bool(told.messages), "the command has run")
    reader(committed(15))
    reader.finish(lambda: False)
    assert told.messages == ["step 10: heard 10", "step 15: heard 15"]


def test_whatever_goes_wrong_is_told_and_the_next_one_has_its_turn() -> None:
    told = Told()
    reader = ValidationCommand(["a program\0", "{step}"], LONGEST_S, "run", (), told)
    for step in (1, 2):
        reader(validated(step))
        reader(committed(step))
        wait_until(lambda: len(told.messages) == step, "it was told")  # noqa: B023
    reader.finish(lambda: False)
    assert told.messages == ["step 1: failed: embedded null byte !", "step 2: failed: embedded null byte !"]


def test_a_stop_ends_the_program_begins_no_other_and_leaves_no_export(tmp_path: Path) -> None:
    told, place = Told(), tmp_path / "place"
    waits = (
        "import pathlib, signal, sys; folder = pathlib.Path(sys.argv[1]); folder.mkdir(); "
        "pathlib.Path(sys.argv[2] + '.new').write_text(str(folder)); "
        "pathlib.Path(sys.argv[2] + '.new').rename(sys.argv[2]); signal.pause()"
    )
    reader = command(told, waits, "{export}", str(place))
    reader(validated(1))
    reader(committed(1))
    wait_until(place.exists, "the program waits")
    reader(validated(2))
    reader(committed(2))
    assert Path(place.read_text()).is_dir()
    reader.finish(lambda: True)
    assert not Path(place.read_text()).exists()
    assert told.messages == ["step 1: the command was ended: the training stops:\n !"]


def test_figures_are_events_of_their_step() -> None:
    told = Told()
    reader = command(told, "print('{\"wer\": 0.5}')")
    reader(validated(7))
    reader(committed(7))
    reader.finish(lambda: False)
    assert told.events[-1] == Figures(step=7, values={"wer": 0.5})


@pytest.mark.parametrize(
    ("output", "figures"),
    [
        ('{"a": ' * 200_000, {}),
        ('{"wer": 1}\n' + '{"a": ' * 200_000, {"wer": 1.0}),
        (f'{{"huge": {"9" * 400}, "wer": 1, "inf": Infinity, "small": -1e308}}', {"wer": 1.0, "small": -1e308}),
        ('  {"wer": 1}', {"wer": 1.0}),
        ('{"wer": 1}\n{"wer": 2', {"wer": 1.0}),
    ],
    ids=["nested", "nested behind an object", "numbers that no float is", "indented", "cut off"],
)
def test_output_of_any_kind_has_figures_or_none(output: str, figures: dict[str, float]) -> None:
    assert figures_of(output) == figures
