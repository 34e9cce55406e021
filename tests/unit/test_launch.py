"""Exit codes to decisions, and the launcher on this machine with trainers that are a few lines of Python."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from indextts_job.errors import EXIT_CONFIG, ConfigError
from indextts_job.preemption.relay import FORWARDED, UNHANDLED_CODES, StopRelay
from launch import local
from launch.cli import main
from launch.job import Failures, Job, decide, describe, read_progress, shell_code
from launch.local import LocalLauncher


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """The launcher installs its own, except for signals that are ignored here, which a shell may have done."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in FORWARDED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("code", "failures", "move"),
    [
        (0, 0, "end"),
        (65, 1, "end"),
        (77, 1, "end"),
        (78, 1, "end"),
        (75, 0, "restart"),
        (75, 99, "restart"),
        (69, 1, "retry"),
        (70, 3, "retry"),
        (70, 4, "end"),
        (137, 1, "retry"),
        (143, 1, "retry"),
        (1, 4, "end"),
    ],
)
def test_the_exit_code_says_what_to_do(code: int, failures: int, move: str) -> None:
    assert decide(code, failures, 3) == move


def test_a_signal_is_a_code_as_shells_report_it() -> None:
    assert [shell_code(code) for code in (0, 75, -9, -15)] == [0, 75, 137, 143]
    assert describe(137) == "killed by SIGKILL"
    assert describe(75).startswith("stopped on request")


@pytest.mark.parametrize("code", range(256))
def test_every_exit_code_has_words(code: int) -> None:
    assert describe(code)


@pytest.mark.parametrize("code", [1, 3, 127, 128, 168, 254])
def test_a_code_that_is_no_signal_is_a_failure(code: int) -> None:
    assert describe(code) == "failed"


def test_a_restarted_node_leaves_a_code_of_its_own() -> None:
    assert describe(255) == "its node restarted, or the container could not start"


def test_failures_count_in_a_row_without_a_new_checkpoint() -> None:
    count = Failures()
    seen = []
    for code, step in ((70, 10), (70, 10), (137, 10), (70, 20), (70, 20), (75, 20), (69, 20)):
        count = count.after(code, step)
        seen.append(count.in_a_row)
    assert seen == [1, 2, 3, 1, 2, 0, 1]
    assert count.step == 20
    assert Failures(in_a_row=2, step=20).after(70, 15).in_a_row == 3  # going back is no progress


@pytest.mark.parametrize(("content", "step"), [(b"120\n", 120), (b"", 0), (b"12a", 0), (b"9" * 5000, int("9" * 32))])
def test_progress_is_read_whatever_the_file_holds(tmp_path: Path, content: bytes, step: int) -> None:
    assert read_progress(tmp_path / "missing") == 0
    (tmp_path / "progress").write_bytes(content)
    assert read_progress(tmp_path / "progress") == step


# ---- stops on their way to the trainer


def child(script: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import signal\n{script}"], start_new_session=True)


def test_a_signal_that_came_before_the_child_reaches_it() -> None:
    relay = StopRelay()
    relay.note(signal.SIGTERM)
    assert relay.wait_for(child("signal.pause()")) == -signal.SIGTERM


def test_every_signal_reaches_a_child_once() -> None:
    # A second Ctrl+C ends a trainer at once: it must not come of the first.
    listen = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR2])\nprint(flush=True)"
    count = "got = [signal.sigwait([signal.SIGINT, signal.SIGUSR2]) for _ in range(2)]"
    rest = "left = signal.sigpending()\nraise SystemExit(10 * (len(set(got)) == 2) + len(left))"
    script = f"import signal\n{listen}\n{count}\n{rest}"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        relay = StopRelay()
        relay.note(signal.SIGINT)
        relay.add(process)
        for _ in range(3):
            relay.pass_on()
        relay.note(signal.SIGUSR2)
        for _ in range(3):
            relay.pass_on()
        assert process.wait(30) == 10


@pytest.mark.parametrize("code", UNHANDLED_CODES)
def test_a_trainer_that_died_of_the_stop_signal_has_stopped(code: int) -> None:
    relay = StopRelay()
    assert relay.meaning(code) == code  # nobody asked for a stop: somebody else has killed it
    relay.note(signal.SIGTERM)
    assert relay.meaning(code) == 75
    assert [relay.meaning(other) for other in (0, 69, 70, 137, 139)] == [0, 69, 70, 137, 139]


def test_a_pause_ends_with_a_stop() -> None:
    relay = StopRelay()
    assert not relay.pause(0.0)
    relay.note(signal.SIGHUP)
    assert relay.pause(3600.0)


def test_a_hang_up_is_a_stop_unless_nohup_ignores_it() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    relay = StopRelay()
    relay.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not relay.requested
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    relay.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert relay.requested


class Told(list[str]):
    """What the launcher said."""


def launched(folder: Path, script: str, max_failures: int = 3) -> tuple[int, int, Told]:
    """Exit code of the launcher, number of attempts, and what it said; the trainer is a script with `attempt`."""
    whole = f"""
import os, signal, sys
from pathlib import Path
log = Path({str(folder)!r}) / "attempts"
with log.open("a") as file: file.write("x")
attempt = len(log.read_text())
launcher = os.getppid()
progress = Path(os.environ["INDEXTTS_PROGRESS_FILE"])
{script}
"""
    said = Told()
    code = LocalLauncher(Job(arguments=(), max_failures=max_failures), said.append, (sys.executable, "-c", whole)).run()
    return code, len((folder / "attempts").read_text()), said


@pytest.mark.parametrize("number", FORWARDED)
def test_a_stop_that_the_trainer_does_not_hear_yet_ends_the_job_as_a_stop(
    tmp_path: Path, number: signal.Signals
) -> None:
    # The trainer asks its launcher for a stop and has no handler itself, as in its first moments.
    script = f"signal.signal({int(number)}, signal.SIG_DFL)\nos.kill(launcher, {int(number)})\nsignal.pause()"
    code, attempts, said = launched(tmp_path, script)
    assert (code, attempts) == (75, 1)
    assert said == ["trainer ended with 75 (stopped on request, everything committed)"]


def test_a_stop_between_two_attempts_starts_no_other(tmp_path: Path) -> None:
    os.environ.pop("INDEXTTS_PROGRESS_FILE", None)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        os.kill(os.getpid(), signal.SIGTERM)

    script = f"open({str(tmp_path / 'attempts')!r}, 'a').write('x')\nraise SystemExit(70)"
    assert LocalLauncher(Job(arguments=()), say, (sys.executable, "-c", script)).run() == 70
    assert (tmp_path / "attempts").read_text() == "x"


def test_a_stop_that_fails_is_a_failure_and_ends_the_job(tmp_path: Path) -> None:
    listen = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(69))"
    code, attempts, _ = launched(tmp_path, f"{listen}\nos.kill(launcher, signal.SIGTERM)\nsignal.pause()")
    assert (code, attempts) == (69, 1)


def test_a_job_that_fails_without_progress_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RETRY_BASE_S", 0.0)
    code, attempts, said = launched(tmp_path, "progress.write_text('7')\nsys.exit(70)", max_failures=2)
    assert (code, attempts) == (70, 3)
    assert said[-2].endswith("failure 2 of 2")


def test_progress_counts_failures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RETRY_BASE_S", 0.0)
    script = "progress.write_text(str(attempt))\nsys.exit(70 if attempt < 6 else 0)"
    code, attempts, said = launched(tmp_path, script, max_failures=1)
    assert (code, attempts) == (0, 6)
    assert {line.rpartition(", ")[2] for line in said[:-1]} == {"failure 1 of 1"}


def test_a_machine_without_room_for_a_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with pytest.raises(ConfigError, match="TMPDIR"):
        LocalLauncher(Job(arguments=()), print, (sys.executable, "-c", "")).run()


# ---- the command line


@pytest.mark.parametrize("arguments", [["local", "--max-fail", "3"], ["slurm", "submit", "--dry"], ["nowhere"], []])
def test_wrong_arguments_are_a_wrong_configuration(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 78
    shown = capsys.readouterr().err
    assert "error: " in shown
    assert "Traceback" not in shown


def test_a_message_of_a_file_moves_no_cursor_and_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b]0;owned\x07 password: hunter2.yaml"
    assert main(["slurm", "submit", "--", str(tmp_path / name)]) == 78
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("target", ["/dev/full", "reader gone"])
def test_a_launcher_that_cannot_speak_goes_on(target: str) -> None:
    script = (
        "import sys\nfrom launch.commands.arguments import say\nsay('one')\nsay('two')\n"
        "print('went on', file=sys.stderr)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    out = os.open(target, os.O_WRONLY) if target == "/dev/full" else writer
    done = subprocess.run([sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    for descriptor in {out, writer}:
        os.close(descriptor)
    assert (done.returncode, done.stderr) == (0, "went on\n")


def test_a_missing_kubernetes_client_is_named_with_what_to_install() -> None:
    script = "import sys; sys.modules['kubernetes'] = None; from launch.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "kubernetes"]
    ended = subprocess.run([*command, "status", "am"], capture_output=True, text=True, check=False)
    assert ended.returncode == EXIT_CONFIG
    assert "pip install 'indextts-job[kubernetes]'" in ended.stderr
    config = Path(__file__).parents[2] / "k8s/base/run.yaml"
    rendered = [*command, "submit", "--dry-run", "--image", "i", "--", str(config)]
    assert "kind: Job" in subprocess.run(rendered, capture_output=True, text=True, check=True).stdout


def test_a_jobset_is_printed_and_never_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(__file__).parents[2] / "k8s/base/run.yaml")
    submit = ["kubernetes", "submit", "--jobset", "--image", "i"]
    # Said before anything else is looked at.
    assert main([*submit, "--", "no-such-file.yaml"]) == EXIT_CONFIG
    told = capsys.readouterr()
    assert "--jobset prints a manifest: add --dry-run" in told.err
    assert told.out == ""
    assert main([*submit, "--dry-run", "--nodes", "2", "--", config]) == 0
    assert "kind: JobSet\n" in capsys.readouterr().out
