"""Programs of the user's beside a training: ended with their children, and what they print is bounded."""

import os
import sys
from pathlib import Path

import pytest

from indextts_job import programs
from indextts_job.programs import Ended, run_program
from tests.support.waiting import is_gone, wait_until


def run(source: str, limit_s: float = 60.0, **keys: object) -> Ended:
    return run_program([sys.executable, "-c", source], limit_s, **keys)  # type: ignore[arg-type]


def test_its_code_and_what_it_prints_on_either_stream() -> None:
    ended = run(
        "import sys; print(sys.stdin.read(), flush=True); print('below', file=sys.stderr); sys.exit(3)", told="x ሰ"
    )
    assert ended == Ended(3, "x ሰ\nbelow\n")


def test_only_the_end_of_much_output_is_kept() -> None:
    ended = run("print('begin'); print('x' * 200_000); print('end')")
    assert ended.code == 0
    assert len(ended.output) == programs.LAST_BYTES
    assert ended.output.endswith("x\nend\n")


def test_one_that_prints_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST_BYTES", 2**20)
    ended = run("while True: print('x' * 1000)")
    assert (ended.code, ended.why) == (None, "it has printed more than 1 MiB")


def test_one_that_is_ended_may_clean_up(tmp_path: Path) -> None:
    source = (
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('cleaned up'))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "signal.pause()"
    )
    ended = run(source, stopped=(tmp_path / "up").exists)
    assert ended == Ended(None, "cleaned up\n", "the training stops")


def test_text_that_has_no_encoding_goes_in_and_out() -> None:
    ended = run("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read() + bytes([255]))", told="half \ud800")
    assert ended == Ended(0, "half ?\ufffd")


def test_it_has_a_session_of_its_own() -> None:
    """A Ctrl+C at the terminal is meant for the training."""
    assert run("import os; print(os.getsid(0) == os.getpid())").output == "True\n"


def test_its_children_end_with_it(tmp_path: Path) -> None:
    child = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    source = (
        "import pathlib, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()"
    )
    ended = run(source, stopped=(tmp_path / "pid").exists)
    assert (ended.code, ended.why) == (None, "the training stops")
    child_pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(child_pid), "the child of a program that was ended is gone")


def test_a_child_that_holds_the_output_does_not_hold_the_training(tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    ended = run(f"import subprocess; subprocess.Popen(['cat', {str(held)!r}]); print('done')")
    assert ended == Ended(0, "done\n")
    held.open("wb").close()  # the child, which waited for this, ends


def test_a_limit_ends_it_and_says_so() -> None:
    assert run("while True: pass", limit_s=0.0).why == "its 0 s are over"


def test_one_that_is_not_there_cannot_be_started() -> None:
    with pytest.raises(FileNotFoundError):
        run_program(["/no/such/program"], 1.0)


def test_standard_input_that_is_not_read_is_no_error() -> None:
    assert run("pass", told="x" * 2**20).code == 0
