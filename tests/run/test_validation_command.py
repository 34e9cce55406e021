"""`validation.command`: run on an export beside the training, and nothing depends on it; where commands come from."""

import json
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from indextts_job.attempt.validation_command import figures_of
from indextts_job.commands.settings import configuration
from indextts_job.demo.world import World
from indextts_job.errors import EXIT_OK, EXIT_RULE, EXIT_STOPPED, ConfigError
from tests.support.attempts import Attempted, attempt
from tests.support.runs import config_for, curve, events, newest, state_of

PROGRAM = """
import json, pathlib, sys
folder, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
print("found", *sorted(path.name for path in folder.iterdir()))
print(json.dumps({"step": step, "bytes": (folder / "gpt.pth").stat().st_size, "words": "left out", "true": True}))
"""


def train(world: World, run: Path, *command: str, **keys: object) -> Attempted:
    given = {"validation__command": list(command), "validation__interval_steps": 6, "schedule__max_steps": 6, **keys}
    return attempt(config_for(world, run, **{"checkpoint__interval_steps": 0, **given}))


def test_it_gets_an_export_and_its_figures_become_curves(world: World, tmp_path: Path) -> None:
    done = train(world, tmp_path / "run", sys.executable, "-c", PROGRAM, "{export}", "{step}")
    assert done.code == EXIT_OK, done.error
    assert "found LICENSE README.md bpe.model config.yaml gpt.pth" in done.output
    (figures,) = events(tmp_path / "run", "Figures")
    assert figures["step"] == 6
    assert figures["values"].keys() == {"step", "bytes"}
    ((step, value),) = curve(tmp_path / "run", "command/bytes")
    assert step == 6
    assert value == pytest.approx(figures["values"]["bytes"])


@pytest.mark.parametrize(
    ("program", "keys", "message"),
    [
        ("import sys; print('no model'); sys.exit(3)", {}, "the command ended with 3:"),
        ("while True: pass", {"validation__command_seconds": 4.0}, " s are over"),
    ],
    ids=["a failure", "the time limit"],
)
def test_its_end_is_a_warning_and_training_has_the_same_bits(
    world: World, tmp_path: Path, program: str, keys: dict[str, object], message: str
) -> None:
    done = train(world, tmp_path / "run", sys.executable, "-c", program, **keys)
    assert done.code == EXIT_OK, done.error
    (warned,) = (event for event in events(tmp_path / "run", "Notice") if event["topic"] == "command")
    assert warned["warning"]
    assert message in warned["message"]
    assert not events(tmp_path / "run", "Figures")
    assert train(world, tmp_path / "plain").code == EXIT_OK
    assert state_of(newest(tmp_path / "run")) == state_of(newest(tmp_path / "plain"))


HANGS = (sys.executable, "-c", "import signal; signal.pause()")


def test_a_stop_ends_it(world: World, tmp_path: Path) -> None:
    config = {"validation__interval_steps": 6, "validation__command": list(HANGS), "validation__command_seconds": 40.0}
    done = attempt(config_for(world, tmp_path / "run", schedule__max_steps=12, **config), stop_at=7)
    assert done.code == EXIT_STOPPED
    assert "was ended: the training stops" in done.output


def test_an_error_of_the_training_ends_it(world: World, tmp_path: Path) -> None:
    goal = {"validation__stop_unless": ["text_loss < 0.001 by 12"], "validation__command_seconds": 40.0}
    done = train(world, tmp_path / "run", *HANGS, schedule__max_steps=18, checkpoint__interval_steps=6, **goal)
    assert done.code == EXIT_RULE
    assert "was ended: the training stops" in done.output
    # Told before the end of the attempt is, so it is in the journal.
    (told,) = (event for event in events(tmp_path / "run", "Notice") if "training stops" in event["message"])
    assert told["warning"]


def test_a_program_that_is_not_there_is_a_warning(world: World, tmp_path: Path) -> None:
    done = train(world, tmp_path / "run", "/no/such/program")
    assert done.code == EXIT_OK
    assert "failed: [Errno 2] No such file or directory: '/no/such/program'" in done.output


@pytest.mark.parametrize(
    ("output", "figures"),
    [
        ('{"wer": 0.25}', {"wer": 0.25}),
        ('{"wer": 1}\nlater words', {"wer": 1.0}),
        ('{"wer": 1}\n{"wer": 2, "name": "x", "nan": NaN}', {"wer": 2.0}),
        ("[1, 2]\nwords", {}),
        ("", {}),
    ],
)
def test_figures_are_the_numbers_of_the_last_object(output: str, figures: dict[str, float]) -> None:
    assert figures_of(output) == figures


def test_a_command_of_a_record_is_not_run_and_that_is_said(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(world, run, "/no/such/program", speaking__limits__distinct=0.5).code == EXIT_OK
    assert newest(run).values.config["validation"]["command"] == ["/no/such/program"]
    found = configuration([f"run={run}"], {})
    assert found.config.validation.command == ()
    assert found.config.validation.interval_steps == 6, "the rest of the record is taken"
    assert found.config.speaking.limits.distinct == 0.5, "of sections in sections too"
    assert any("validation.command of the record" in note and "is not run" in note for note in found.notes)
    again = configuration([f"run={run}", 'validation.command=["echo"]'], {})
    assert again.config.validation.command == ("echo",)


def test_a_command_of_a_file_in_a_bucket_is_refused(tmp_path: Path) -> None:
    document = {
        "inputs": {"tokenizer": "t.model"},
        "data": {"train_manifests": ["t.jsonl"]},
        "validation": {"command": ["rm", "-r", "/"]},
    }
    fsspec.filesystem("memory").pipe_file("/elsewhere/run.yaml", yaml.safe_dump(document).encode())
    with pytest.raises(ConfigError, match=r"validation\.command, which is run on this machine"):
        configuration(["memory://elsewhere/run.yaml"], {})
    local = tmp_path / "run.yaml"
    local.write_text(json.dumps(document), encoding="utf-8")
    assert configuration([str(local)], {}).config.validation.command == ("rm", "-r", "/")
    fsspec.filesystem("memory").pipe_file(
        "/elsewhere/run.yaml", yaml.safe_dump({**document, "validation": {}}).encode()
    )
    given = configuration(["memory://elsewhere/run.yaml", 'validation.command=["echo", "here"]'], {})
    assert given.config.validation.command == ("echo", "here")
