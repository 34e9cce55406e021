"""The commands as a user meets them, in processes of their own where a signal or the start-up counts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from indextts_job.cli import main
from indextts_job.commands import status
from indextts_job.demo.stage import demand_own_folder
from indextts_job.demo.world import World
from indextts_job.errors import DataError
from indextts_job.model.base_checkpoint import load_base_checkpoint
from indextts_job.model.config import gpt_config
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.report.attempts import previous_end
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.engine import to_device
from tests.support.attempts import attempt
from tests.support.runs import config_for, events, newest, state_of, store_of
from tests.support.waiting import is_gone, wait_until
from tests.support.warm_parent import REPOSITORY


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "run"
    assert attempt(config_for(world, folder)).code == 0
    return folder


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "indextts_job", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def written_config(world: World, run: Path, **keys: object) -> Path:
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(yaml.safe_dump(config_for(world, run, **keys).to_json()), encoding="utf-8")
    return path


def wait_for(path: Path, process: subprocess.Popen[str], text: str = "") -> None:
    """Until a file is there and holds a text, or the process has ended, which fails."""
    deadline = time.monotonic() + 60
    while not path.exists() or (text and text not in path.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        os.sched_yield()


def test_checkpoints_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "list", str(run), "--verify"]) == 0
    table = capsys.readouterr().out
    assert "best" in table
    assert "final" in table
    assert "yes" in table
    assert main(["checkpoints", "list", str(run), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in rows[:3]] == sorted((row["step"] for row in rows), reverse=True)[:3]
    assert (rows[0]["step"], rows[0]["tags"][-1]) == (24, "final")
    assert rows[0]["verified"] is None
    assert main(["train", "--list_checkpoints", "--output_dir", str(run)]) == 0
    assert "final" in capsys.readouterr().out


def test_the_list_of_a_training_is_of_the_run_that_its_file_names(
    world: World, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_for(world, run).to_json()), encoding="utf-8")
    assert main(["train", str(path), "--list-checkpoints"]) == 0
    assert "final" in capsys.readouterr().out


def test_what_the_old_trainer_left_is_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("latest.pth", "model_step1000.pth", "model_step900.pth"):
        (tmp_path / name).touch()
    assert main(["train", "--list_checkpoints", "--output_dir", str(tmp_path)]) == 0
    assert "latest.pth, model_step1000.pth, model_step900.pth" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_marked_in_the_list(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert attempt(config_for(world, folder, schedule__max_steps=4)).code == 0
    for path in (folder / "objects").iterdir():
        path.write_bytes(b"damaged")
    assert main(["checkpoints", "list", str(folder), "--verify"]) == 65
    assert "NO" in capsys.readouterr().out
    assert main(["checkpoints", "inspect", str(folder), "--verify"]) == 65


def test_a_checkpoint_is_inspected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "inspect", str(run), "--json", "--verify"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["step"], document["total_steps"], document["verified"]) == (24, 24, True)
    assert document["epoch"] == pytest.approx(24 * 7 / 40)
    assert document["environment"]["torch"] == torch.__version__
    assert document["config"]["recipe"]["global_batch_samples"] == 7
    assert document["order"]["num_samples"] == 40
    assert document["vocabulary"] == {"pieces": 217, "base_pieces": 100}
    assert len(document["history"]["validations"]) == 5  # the last at the end
    assert main(["checkpoints", "inspect", str(run)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["step"] == 24


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["checkpoints", "list", "no/such/run"], 78, "no run here"),
        (["checkpoints", "inspect", "no/such/step-00000001-attempt-0001-from-00000000.json"], 78, "no such checkpoint"),
        (["export", "no/such/run", "--output-dir", "x"], 78, "no such run"),
        (["checkpoints"], 78, "ACTION"),
        (["frobnicate"], 78, "frobnicate"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "trained_ckpts: no such run, and no training data is given. Runs below {cwd}: runs/am."),
        (["run=runs/ma"], "runs/ma: no such run"),
        (["rum=runs/am"], "unknown key rum. Did you mean run?"),
        (["recipe.seeds=3"], "unknown key recipe.seeds. Did you mean recipe.seed?"),
    ],
)
def test_a_command_without_data_names_the_misspelt_key_else_the_runs_nearby(
    settings: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/am/attempts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *settings]) == 78
    assert words.format(cwd=tmp_path) in capsys.readouterr().err


def test_an_export_computes_what_the_run_computed(
    world: World, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    assert main(["export", str(run), "--tag", "final", "--output-dir", str(folder)]) == 0
    names = ["LICENSE", "README.md", "bpe.model", "config.yaml", "gpt.pth"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "bpe.model").read_bytes() == world.tokenizer.read_bytes()
    document = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert document["gpt"]["number_text_tokens"] == 217
    base_keys = torch.load(world.base_checkpoint, weights_only=True).keys()
    exported = torch.load(folder / "gpt.pth", weights_only=True)
    assert exported.keys() == base_keys
    config = gpt_config(document, "config.yaml")
    base = load_base_checkpoint(str(folder / "gpt.pth"), config)
    model = UnifiedVoice(config, Vocabulary(217, 217), 0.0)
    model.load_state_dict({key: base.tensors[key] for key in model.state_dict()})
    manifest = newest(run)
    state = store_of(run).load(manifest)
    trained = UnifiedVoice(config, Vocabulary(217, 100), 0.0)
    trained.load_state_dict(
        {key: state[f"model/{key}" if f"model/{key}" in state else f"base/{key}"] for key in trained.state_dict()}
    )
    from indextts_job.data.dataset import Limits
    from indextts_job.data.sources import load_dataset
    from indextts_job.model.batch import collate

    dataset = load_dataset([str(world.validation_manifest)], Limits(config, 217), skip_bad_samples=False)
    batch = to_device(collate([dataset.sample(i) for i in range(5)], config), torch.device("cpu"))
    one, other = model.eval()(batch), trained.eval()(batch)
    assert (one.text.item(), one.mel.item()) == (other.text.item(), other.mel.item())
    capsys.readouterr()
    assert main(["export", str(run), "--output-dir", str(folder)]) == 78
    assert "nothing is overwritten" in capsys.readouterr().err


def test_an_export_into_a_file_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main(["export", str(run), "--output-dir", str(tmp_path / "taken")]) == 78
    assert "taken is a file, expected a folder" in capsys.readouterr().err
    assert main(["export", str(run), "--output-dir", str(tmp_path / "taken/below")]) == 69
    assert "the export failed" in capsys.readouterr().err


def test_a_name_with_a_line_break_forges_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_given: object) -> int:
        raise DataError("sample utt\nerror: all is lost has no codes")

    monkeypatch.setattr(status, "_status", refuse)
    assert main(["status", "run"]) == 65
    assert capsys.readouterr().err == "error: sample utt\n  error: all is lost has no codes\n"


def test_what_is_gone_on_from_is_named_when_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/other/checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "runs/gone"]) == 78
    assert "runs/gone holds no checkpoints to go on from" in capsys.readouterr().err


def test_an_export_is_accepted_as_the_base_of_a_new_run(world: World, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    assert main(["export", str(run), "--output-dir", str(folder)]) == 0
    config = config_for(
        world,
        tmp_path / "second",
        inputs__base_checkpoint=str(folder / "gpt.pth"),
        inputs__model_config=str(folder / "config.yaml"),
        schedule__max_steps=2,
    )
    ended = attempt(config)
    assert ended.code == 0
    # The rows of the released base stay frozen, and the others go on from where the export has them.
    assert "extended from 100 to 217 pieces: base rows are frozen" in ended.output
    exported = torch.load(folder / "gpt.pth", weights_only=True)
    tensors = store_of(tmp_path / "second").load(newest(tmp_path / "second"))
    base = torch.load(world.base_checkpoint, weights_only=True)
    for key in ("text_embedding.weight", "text_head.weight", "text_head.bias"):
        assert torch.equal(tensors[f"base/{key}"], base[key])
        assert float((tensors[f"model/{key}_new"] - exported[key][100:217]).abs().max()) < 0.03


def test_an_old_command_line_works(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "trained_ckpts"
    line = (
        f"--train-manifest {world.train_manifest}::am --val-manifest {world.validation_manifest}::am "
        f"--tokenizer {world.tokenizer} --config {world.model_config} --base-checkpoint {world.base_checkpoint} "
        f"--output-dir {folder} --epochs 1 --batch-size 4 --grad-accumulation 2 --amp --num-workers 2 "
        "--log-interval 2 --warmup-steps 2 --save-interval 3 --val-interval 3"
    )
    process = start("train", *line.split())
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "the global batch is 8 samples" in output
    assert newest(folder).name.step == 5
    # Nothing but the folder: the rest comes from its checkpoint.
    process = start("train", "--resume", "auto", "--output-dir", str(folder))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "complete at step 5" in output
    # The documents name the data again, and nothing else: what is not given is as the run records it.
    again = f"--resume auto --output-dir {folder} --train-manifest {world.train_manifest}::am"
    process = start("train", *again.split(), "--val-manifest", f"{world.validation_manifest}::am")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"not given, so as {folder} records it: " in output
    assert "schedule.epochs=1" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stop_signal_commits_and_exits_75(world: World, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    config = written_config(world, folder, schedule__max_steps=0, schedule__epochs=1000, schedule__warmup_steps=0)
    process = start("train", str(config))
    wait_for(folder / "samples/attempt-0001.jsonl", process, '"step": 1,')
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert number.name in output
    # A periodic save may have been the last thing it did; then there is nothing more to commit.
    assert "preempted" in newest(folder).name.tags or newest(folder).name.step % 4 == 0


def test_a_signal_during_start_up_exits_75_with_nothing_written(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = written_config(world, folder)
    # Send it as soon as the process has handlers, which is long before torch is imported.
    process = start("train", str(config))
    status = Path(f"/proc/{process.pid}/status")
    caught = 1 << (signal.SIGTERM - 1)
    while (
        not int(next(line for line in status.read_text().splitlines() if line.startswith("SigCgt")).split()[1], 16)
        & caught
    ):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "before training began" in errors
    assert not (folder / "checkpoints").exists()


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stands(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = written_config(world, folder, schedule__max_steps=0, schedule__epochs=1000, checkpoint__interval_steps=2)
    process = start("train", str(config))
    wait_for(folder / "checkpoints", process)
    # Both before the process looks: the second one finds the default action.
    os.kill(process.pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    status = Path(f"/proc/{process.pid}/status")
    caught = 1 << (signal.SIGINT - 1)
    while process.poll() is None:
        lines = status.read_text().splitlines() if status.exists() else []
        mask = next((line for line in lines if line.startswith("SigCgt")), "SigCgt 0").split()[1]
        if not int(mask, 16) & caught:
            break
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 75)
    for name in store_of(folder).names():
        store_of(folder).verify(store_of(folder).manifest(name))


def test_two_attempts_at_once_one_is_superseded_and_the_weights_are_right(world: World, tmp_path: Path) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    keys = {"schedule__max_steps": 0, "schedule__epochs": 20, "checkpoint__interval_steps": 10}
    assert attempt(config_for(world, undisturbed, **keys)).code == 0
    config = written_config(world, folder, **keys)
    first = start("train", str(config))
    wait_for(folder / "checkpoints", first)
    second = start("train", str(config))
    first_output, first_errors = first.communicate(timeout=120)
    _, second_errors = second.communicate(timeout=120)
    assert second.returncode == 0, second_errors
    if first.returncode == 75:
        assert "attempt 2 of" in first_errors
        ended = events(folder, "AttemptEnded")
        assert [event["outcome"] for event in ended if event["exit_code"] == 75] == ["stopped"]
    else:  # it was done before the second one had started
        assert first.returncode == 0, first_output
    assert state_of(newest(folder)) == state_of(newest(undisturbed))


def test_the_local_launcher_restarts_after_75_and_after_a_kill(world: World, tmp_path: Path) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    keys = {"schedule__max_steps": 0, "schedule__epochs": 20}
    assert attempt(config_for(world, undisturbed, **keys)).code == 0
    config = written_config(world, folder, **keys)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "local", str(config)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    for number, life in ((signal.SIGTERM, 1), (signal.SIGKILL, 2)):
        wait_for(folder / f"samples/attempt-{life:04d}.jsonl", process)
        os.kill(json.loads((folder / f"attempts/{life:04d}.json").read_bytes())["pid"], number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "trainer ended with 75" in output
    assert "trainer ended with 137" in output
    assert state_of(newest(folder)) == state_of(newest(undisturbed))


def test_the_local_launcher_does_not_retry_what_a_retry_cannot_mend() -> None:
    command = [sys.executable, "-m", "launch", "local", "--", "schedule.max_stepz=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 78
    assert "starting it again" not in done.stdout


def test_the_demo_proves_itself(tmp_path: Path) -> None:
    process = start("demo", "--folder", str(tmp_path / "demo"))
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, output + errors
    assert "The interruptions left no trace." in output
    assert "0 repeated, 0 missing" in output
    assert "bit for bit the same" in output
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert main(["demo", "--folder", str(precious)]) == 78
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_stopped_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    process = start("demo", "--folder", str(tmp_path / "demo"))
    wait_for(tmp_path / "demo/undisturbed/samples/attempt-0001.jsonl", process)
    trainer = json.loads((tmp_path / "demo/undisturbed/attempts/0001.json").read_bytes())["pid"]
    process.send_signal(number)  # to it alone, as `kill` does; Ctrl+C goes to the whole group
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 130)
    wait_until(lambda: is_gone(trainer), "the trainer is gone")
    # What it left is an earlier demo's, so the next one may take the folder.
    demand_own_folder(tmp_path / "demo")


def test_a_folder_that_a_demo_cannot_have_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    demand_own_folder(tmp_path / "demo")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").write_text("mine")
    (tmp_path / "demo/link").symlink_to(tmp_path / "elsewhere")
    demand_own_folder(tmp_path / "demo")
    assert (tmp_path / "elsewhere/mine").exists()
    assert not (tmp_path / "demo/link").is_symlink()
    assert main(["demo", "--folder", str(tmp_path / "file")]) == 78
    assert "Give another one" in capsys.readouterr().err


def test_version_and_help() -> None:
    for arguments in (["--version"], ["--help"], ["train", "--help"], ["train", "--help-config"]):
        process = start(*arguments)
        output, _ = process.communicate()
        assert process.returncode == 0
        assert output


def test_status_shows_every_attempt(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=8)).code == 0
    assert attempt(config_for(world, run, schedule__max_steps=12, resume__accept=["schedule.max_steps"])).code == 0
    assert main(["status", str(run), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["attempts"]
    assert document["standing"]["state"] == "complete"
    assert document["spent_seconds"]["steps"] > 0
    assert (first["from_step"], first["committed_step"], first["outcome"], first["exit_code"]) == (0, 8, "complete", 0)
    assert (second["from_step"], second["last_step"]) == (8, 12)
    assert second["previous_end"] == "complete, exit code 0"
    (run / "events/attempt-0002.jsonl").unlink()  # killed before its journal reached the storage
    assert previous_end(open_storage(str(run))) == "killed: it wrote no end"
    assert main(["status", str(run)]) == 0
    assert "8 … 8" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["status", str(run), "--html", str(page)]) == 0
    assert "<svg" in page.read_text(encoding="utf-8")
    assert main(["status", str(run), "--html", str(tmp_path / "none/page.html")]) == 78
    assert "No such file" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "nothing")]) == 78
    assert "no run here" in capsys.readouterr().err
