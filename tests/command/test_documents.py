"""The old trainers' documents: each command line, verbatim but for the program's name, ends as the text around it says.

The lines go through bash, which takes them apart as a user's shell would. The data lies where the documents expect it,
in the real formats.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from indextts_job.cli import main
from indextts_job.demo.world import World
from tests.support.legacy import STEP, old_checkpoint, saved
from tests.support.old_commands import COMMANDS
from tests.support.runs import newest

AMHARIC = "checkpoints/amharic_200hr_full_training"
Command = Callable[[str, int], tuple[int, str]]


@pytest.fixture
def place(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with everything where the documents have it."""
    shutil.copytree(world.folder, tmp_path, dirs_exist_ok=True)
    processed = tmp_path / "processed"
    for kind in ("train", "val"):
        manifest = (processed / f"gpt_pairs_{kind}.jsonl").read_text(encoding="utf-8")
        (processed / f"GPT_pairs_{kind}.jsonl").write_text(manifest, encoding="utf-8")
        (processed / f"{kind}_pairs.jsonl").write_text(manifest, encoding="utf-8")
        (processed / f"{kind}_manifest.jsonl").write_text(manifest, encoding="utf-8")
    for folder in ("preprocessed_amharic", "amharic_dataset"):
        (tmp_path / folder).symlink_to(processed)
    extended = tmp_path / "tokenizers/extended_bpe.model"
    shutil.copy(extended, tmp_path / "tokenizers/amharic_extended_bpe.model")
    shutil.copy(extended, tmp_path / "amharic_bpe.model")
    document = yaml.safe_load((tmp_path / "checkpoints/config.yaml").read_text(encoding="utf-8"))
    document |= {
        "training": {
            "num_epochs": 8,
            "batch_size": 1,
            "learning_rate": "2e-5",
            "warmup_steps": 3000,
            "gradient_clip_val": 0.3,
            "save_every": 250,
            "log_every": 25,
            "gradient_accumulation_steps": 16,
        },
        "model_paths": {"pretrained_model": "checkpoints/gpt.pth", "amharic_vocab": "amharic_bpe.model"},
        "output": {"checkpoint_dir": AMHARIC},
    }
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs/amharic_200hr_full_training_config.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the n-th line of a document; gives exit code and everything that it printed."""

    def run(name: str, number: int = 0) -> tuple[int, str]:
        program = 'indextts-job() { printf "%s\\0" "$@" $\'\\x1e\'; }; move() { mv "${@//\\\\//}"; }; '
        shell = subprocess.run(["bash", "-c", program + COMMANDS[name]], capture_output=True, check=False)
        lines = [line.split(b"\0") for line in shell.stdout.split(b"\x1e\0")]
        arguments = [[word.decode() for word in line if word] for line in lines if any(line)]
        capsys.readouterr()
        code = main(arguments[number])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def old_run(world: World, folder: Path, name: str = "latest.pth", **how: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return saved(old_checkpoint(world, **how), folder, name)  # type: ignore[arg-type]


def test_quick_start_and_its_resume(place: Path, command: Command) -> None:
    code, printed = command("S0.1", 0)
    assert code == 0, printed
    assert newest("trained_ckpts").name.step == 3  # 2 epochs of 40 samples in batches of 32
    assert newest("trained_ckpts").name.tags == ("best", "final")
    code, printed = command("S0.2", 0)
    assert code == 0, printed
    assert "checkpoint found at" in printed


def test_the_central_command_takes_over_the_old_run(world: World, place: Path, command: Command) -> None:
    old_run(world, place / "training_output", decay_steps=300)
    code, printed = command("S1.1", 0)
    assert code == 0, printed
    assert "going on at step 9 of 13" in printed
    assert "shrunk" in printed
    assert newest("training_output").name.step == 13
    code, printed = command("S1.1", 0)
    assert code == 0, printed
    assert "checkpoint found at training_output/checkpoints/" in printed


@pytest.mark.parametrize("name", ["S2.1", "S2.4", "S2.5", "S2.6", "S2.7"])
def test_a_line_that_leaves_the_rest_to_the_reader_asks_for_the_data(
    world: World, place: Path, command: Command, name: str
) -> None:
    old_run(world, place / "trained_ckpts")
    code, printed = command(name, 0)
    assert code == 78
    assert "--train-manifest" in printed


@pytest.mark.parametrize(("name", "folder"), [("S2.2", "trained_ckpts_fixed"), ("S2.8", "trained_ckpts_fixed_fresh")])
def test_a_fresh_start_with_the_fix_leaves_the_old_run_alone(
    world: World, place: Path, command: Command, name: str, folder: str
) -> None:
    old = old_run(world, place / "trained_ckpts")
    before = old.read_bytes()
    code, printed = command(name, 0)
    assert code == 0, printed
    assert "fresh start" in printed
    assert newest(folder).values.config_section("recipe")["text_loss_weight"] == 0.4
    assert list((place / "trained_ckpts").iterdir()) == [old]
    assert old.read_bytes() == before


def test_the_fixed_run_is_resumed_by_the_old_files_name(place: Path, command: Command) -> None:
    assert command("S2.2", 0)[0] == 0
    code, printed = command("S2.3", 0)
    assert code == 0, printed
    assert "there is no trained_ckpts_fixed/latest.pth; this run has checkpoints of its own" in printed


def test_the_experiment_goes_on_from_a_sound_old_run_and_refuses_a_spoilt_one(
    world: World, place: Path, command: Command
) -> None:
    old_run(world, place / "trained_ckpts", moved=True)
    code, printed = command("S2.9", 0)
    assert code == 78
    assert "A fresh start is better" in printed
    old_run(world, place / "trained_ckpts")
    code, printed = command("S2.9", 0)
    assert code == 0, printed
    assert f"going on at step {STEP} of 13" in printed
    assert newest("trained_ckpts_resumed_experiment").values.lineage.run == str(place / "trained_ckpts/latest.pth")


@pytest.mark.parametrize("name", ["S3.1", "S3.2"])
def test_windows_spellings_are_named(world: World, place: Path, command: Command, name: str) -> None:
    old_run(world, place / "training_output")
    code, printed = command(name, 0)
    assert code == 78
    assert "cmd.exe" in printed
    assert "in paths" in printed


def test_the_full_layer_script_trains_and_resumes_with_its_configuration(place: Path, command: Command) -> None:
    code, printed = command("S4.5", 0)
    assert code == 0, printed
    run = newest(AMHARIC)
    assert run.name.step == 20  # 8 epochs of 40 samples, 1 x 16 a step
    config = run.values.config
    assert (config["schedule"]["learning_rate"], config["optimizer"]["grad_clip"]) == (2e-5, 0.3)
    assert "also holds training settings" in printed
    for name, number in (("S4.6", 0), ("S4.1", 0), ("S4.3", 0), ("S4.8", 0)):
        code, printed = command(name, number)
        assert code == 0, (name, printed)
        assert f"checkpoint found at {AMHARIC}/checkpoints/" in printed
    for name, number in (("S4.2", 0), ("S4.7", 0)):  # a file that this run never wrote
        code, printed = command(name, number)
        assert code == 0, (name, printed)
        assert "this run has checkpoints of its own" in printed
    code, printed = command("S4.4", 0)
    assert code == 0
    assert "final" in printed
    for name, number in (("S4.3", 1), ("S4.8", 1)):  # they name no folder
        code, printed = command(name, number)
        assert code == 78
        assert AMHARIC in printed


def test_the_full_layer_scripts_checkpoint_is_taken_over(world: World, place: Path, command: Command) -> None:
    old = old_checkpoint(world)
    content = {"step": STEP, "model_state_dict": old["model"], "optimizer_state_dict": old["optimizer"], "loss": 3.0}
    (place / AMHARIC).mkdir()
    saved(content, place / AMHARIC, "full_training_checkpoint_step_1000.pt")
    code, printed = command("S4.2", 0)  # names no data, and nothing has recorded any yet
    assert code == 78
    assert "--train-manifest" in printed
    code, printed = command("S4.7", 0)
    assert code == 0, printed
    assert f"weights and moments of {AMHARIC}/full_training_checkpoint_step_1000.pt; going on at step {STEP}" in printed
    code, printed = command("S4.1", 0)
    assert code == 0, printed
    assert "checkpoint found at" in printed


def test_the_first_command_without_data_says_what_is_missing(place: Path, command: Command) -> None:
    code, printed = command("S4.8", 0)
    assert code == 78
    assert "--train-manifest" in printed
    code, printed = command("S4.8", 2)  # the list of a folder that is not there
    assert code == 78
    assert "trained_ckpts" in printed


def test_the_best_model_of_the_old_script_is_a_base(world: World, place: Path, command: Command) -> None:
    (place / AMHARIC).mkdir()
    best = {"model_state_dict": torch.load(world.base_checkpoint, weights_only=True), "step": 5, "loss": 1.0}
    path = saved(best, place / AMHARIC, "full_training_best_model.pt")
    code, printed = command("S4.8", 3)
    assert code == 78  # evaluation needs data, which the line does not name
    assert "--train-manifest" in printed
    data = ["--train-manifest", "processed/train_pairs.jsonl", "--tokenizer", "amharic_bpe.model", "--max-steps", "1"]
    assert main(["train", "--model_path", str(path), *data]) == 0
