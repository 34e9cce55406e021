"""What people read: lines, and the record of committed samples."""

import io
import json

import pytest

from indextts_job.checkpoint.history import Losses
from indextts_job.errors import UnavailableError
from indextts_job.report.console import ConsoleReport, human_bytes, human_seconds
from indextts_job.report.events import (
    AttemptEnded,
    AttemptStarted,
    Committed,
    Event,
    Notice,
    StepDone,
    StopNoticed,
    TrainLine,
    Validated,
    ValidationProgress,
)
from indextts_job.report.journal import Journal, SampleLog, committed_samples
from indextts_job.report.stream import EventStream
from indextts_job.storage.remote_storage import open_storage
from tests.support.stores import fresh_url

LOSSES = Losses(text_loss=3.25, mel_loss=4.5, mel_top1=0.125, total=4.25)
TRAIN = TrainLine(
    step=100,
    epoch=0.5,
    losses=LOSSES,
    learning_rate=2e-5,
    grad_norm=1.0,
    samples_per_s=12.34,
    tokens_per_s=5000.4,
    eta_s=3723.0,
)
NAME = "step-00000100-attempt-0001-from-00000000.json"
EVENTS: list[tuple[Event, str]] = [
    (
        TRAIN,
        "train       epoch 0.50 | step 100 | text_loss 3.2500 | mel_loss 4.5000 | mel_top1 12.5 % | lr 2e-05 | "
        "12.3 samples/s | 5000 tokens/s | left 1:02:03",
    ),
    (
        Validated(step=100, losses=LOSSES, best=True, samples=64, seconds=1.25),
        "validation  step 100 | text_loss 3.2500 | mel_loss 4.5000 | mel_top1 12.5 % | 64 samples in 1.2 s, "
        "best so far",
    ),
    (
        Committed(
            step=100,
            name=NAME,
            tags=("best",),
            bytes_written=3 * 2**20,
            bytes_total=2**31,
            seconds=2.0,
            stall_seconds=0.25,
        ),
        f"checkpoint  step 100 committed [best]: {NAME}, 3.0 MiB written of 2.0 GiB in 2.0 s, training waited 0.25 s",
    ),
    (
        StopNoticed(
            step=99, reason="SIGTERM", seconds_left=25.0, micro_batches_done=2, micro_batches=4, decision="discard"
        ),
        "stop        SIGTERM (25.0 s left) after micro-batch 2 of 4 of step 100: too little time, the cycle was "
        "discarded and will be done again from its first sample",
    ),
    (
        StopNoticed(
            step=99, reason="SIGINT", seconds_left=None, micro_batches_done=2, micro_batches=4, decision="finish"
        ),
        "stop        SIGINT (no deadline) after micro-batch 2 of 4 of step 100: there is time, the cycle was finished",
    ),
    (Notice(step=0, topic="plan", message="[bold]not markup[/]"), "plan        [bold]not markup[/]"),
    (AttemptEnded(step=5, outcome="stopped", exit_code=75), "end         stopped at step 5, exit code 75"),
]


def test_text_from_outside_forges_no_line_moves_no_cursor_and_is_no_markup() -> None:
    stream = io.StringIO()
    message = "skipped \x1b[2Ja[bold]b[/]\ncheckpoint  step 9 committed\rx :smile:"
    ConsoleReport(stream)(Notice(step=0, topic="da\nta", message=message))
    first, second = stream.getvalue().splitlines()
    assert first == "da ta       skipped \\x1b[2Ja[bold]b[/]"
    assert second == " " * 12 + "checkpoint  step 9 committed\\rx :smile:"


@pytest.mark.parametrize(("event", "line"), EVENTS, ids=lambda value: type(value).__name__)
def test_each_thing_is_one_readable_line(event: Event, line: str) -> None:
    stream = io.StringIO()
    with ConsoleReport(stream) as console:
        console(AttemptStarted(step=0, attempt=1, total_steps=10, resumed_from=None))
        console(event)
        console(StepDone(step=1, samples=(1,), tokens=5, seconds=0.1))
        console(ValidationProgress(step=1, done=1, total=2))
    assert stream.getvalue().rstrip("\n").rstrip() == line


def test_a_terminal_gets_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with ConsoleReport(stream) as console:
        console.progress("checking data", 1, 2)
        console(AttemptStarted(step=0, attempt=1, total_steps=200, resumed_from=None))
        console(StepDone(step=100, samples=(1,), tokens=5, seconds=0.1))
        console(TRAIN)
        console(ValidationProgress(step=100, done=3, total=64))
    assert "100/200" in stream.getvalue()
    assert "val 3/64" in stream.getvalue()
    assert "text 3.25 mel 4.50 12/s" in stream.getvalue()


def test_units_are_readable() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 7.6 * 2**30, 2**41)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "7.6 GiB",
        "2.0 TiB",
    ]
    assert [human_seconds(s) for s in (0, 59.9, 3600, 90061)] == ["0:00:00", "0:00:59", "1:00:00", "25:01:01"]


def test_late_readers_get_what_they_missed_once() -> None:
    console: list[Event] = []
    late: list[Event] = []
    stream = EventStream(console.append)
    notices = [Notice(step=0, topic="t", message=str(i)) for i in range(3)]
    stream(notices[0])
    stream(notices[1])
    stream.start([late.append])
    stream(notices[2])
    assert console == late == notices


def test_a_reader_that_cannot_write_is_a_warning_said_once() -> None:
    console: list[Event] = []
    stream = EventStream(console.append)
    fails = [True, True, False, True]

    def reader(_event: Event) -> None:
        if fails.pop(0):
            raise UnavailableError("no space is left.")

    stream.start([reader])
    for number in range(4):
        stream(Notice(step=number, topic="t", message="x"))
    warnings = [event.step for event in console if isinstance(event, Notice) and event.warning]
    assert warnings == [0]  # a reader that has nothing to write for an event has not recovered


def test_the_journal_is_json_lines_without_single_steps() -> None:
    storage = open_storage(fresh_url("memory", None))  # type: ignore[arg-type]
    journal = Journal(storage, 3)
    journal(TRAIN)
    journal(StepDone(step=1, samples=(1,), tokens=5, seconds=0.1))
    journal(
        StopNoticed(step=1, reason="SIGINT", seconds_left=None, micro_batches_done=0, micro_batches=1, decision="x")
    )
    storage.flush()
    lines = [json.loads(line) for line in storage.read("events/attempt-0003.jsonl").decode().splitlines()]
    assert [line["event"] for line in lines] == ["TrainLine", "StopNoticed"]
    assert lines[0]["losses"]["mel_loss"] == 4.5
    assert lines[0]["time"].endswith("+00:00")
    assert lines[1]["seconds_left"] is None


def test_redone_steps_count_once() -> None:
    storage = open_storage(fresh_url("memory", None))  # type: ignore[arg-type]
    for attempt, start, steps in ((1, 0, (1, 2, 3)), (2, 2, (3, 4)), (3, 4, (5,))):
        log = SampleLog(storage, attempt, lambda index: f"s{index}")
        log(AttemptStarted(step=start, attempt=attempt, total_steps=9, resumed_from=None))
        for step in steps:
            log(StepDone(step=step, samples=(step, step + 10), tokens=1, seconds=0.1))
    storage.flush()
    logs = [storage.read(f"samples/attempt-{attempt:04d}.jsonl") for attempt in (1, 2, 3)]
    assert committed_samples(logs) == {step: [f"s{step}", f"s{step + 10}"] for step in range(1, 6)}
    assert committed_samples([logs[0] + b'{"step": 9, "sam']) == {s: [f"s{s}", f"s{s + 10}"] for s in (1, 2, 3)}
