"""An old command line works with only the program's name changed."""

import argparse

import pytest

from indextts_job.config import build_config
from indextts_job.errors import ConfigError
from indextts_job.legacy.flags import add_flags, normalise, overrides

CLOSED_LIST = {
    *("--train-manifest", "--val-manifest", "--tokenizer", "--config", "--base-checkpoint", "--output-dir", "--resume"),
    *("--batch-size", "--grad-accumulation", "--epochs", "--max-steps", "--learning-rate", "--weight-decay"),
    *("--warmup-steps", "--grad-clip", "--text-loss-weight", "--mel-loss-weight", "--log-interval", "--val-interval"),
    *("--val-batch-size", "--max-val-batches", "--save-interval", "--keep-checkpoints", "--num-workers", "--seed"),
    *("--amp", "--grad-checkpointing", "--load-optimizer", "--no-load-optimizer", "--load-scheduler"),
    *("--no-load-scheduler", "--use-wandb"),
}


def parsed(line: str, environment: dict[str, str] | None = None) -> tuple[dict[str, object], list[str]]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return overrides(parser.parse_args(normalise(line.split())), environment or {})


def test_the_list_of_flags_is_closed() -> None:
    # A new setting is a configuration key, never a new flag.
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    assert {option for action in parser._actions for option in action.option_strings} == CLOSED_LIST


def test_every_flag_of_the_old_trainer_is_accepted_and_builds_a_configuration() -> None:
    line = (
        "--train-manifest a.jsonl::am --train-manifest b.jsonl --val-manifest v.jsonl --tokenizer t.model "
        "--config c.yaml --base-checkpoint g.pth --output-dir out --resume auto --batch-size 8 "
        "--grad-accumulation 4 --epochs 2 --max-steps 100 --learning-rate 5e-6 --weight-decay 0.02 "
        "--warmup-steps 2000 --grad-clip 0.5 --text-loss-weight 0.4 --mel-loss-weight 0.6 --log-interval 10 "
        "--val-interval 0 --val-batch-size 16 --max-val-batches 50 --save-interval 250 --keep-checkpoints 5 "
        "--num-workers 8 --seed 7 --amp --grad-checkpointing"
    )
    keys, notes = parsed(line, {"INDEXTTS_RUN_NAME": "amharic"})
    config = build_config(None, "flags", [("flags", keys)])
    assert config.data.train_manifests == ("a.jsonl::am", "b.jsonl")
    assert config.recipe.global_batch_samples == 32
    assert (config.recipe.text_loss_weight, config.recipe.mel_loss_weight, config.recipe.seed) == (0.4, 0.6, 7)
    assert (config.schedule.learning_rate, config.schedule.warmup_steps) == (5e-6, 2000)
    assert (config.validation.interval_steps, config.validation.max_samples) == (0, 800)
    assert (config.checkpoint.interval_steps, config.checkpoint.keep) == (250, 5)
    assert (config.run, config.report.run_name, config.report.log_interval_steps) == ("out", "amharic", 10)
    explained = ("--batch-size", "--max-val-batches", "--num-workers", "--amp", "--grad-checkpointing")
    assert len(notes) == len(explained)
    for flag in explained:
        assert any(note.startswith(flag) for note in notes)


def test_only_given_flags_override() -> None:
    assert parsed("--epochs 3") == ({"schedule.epochs": 3}, [])


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("--resume_from auto", "resume.source", "auto"),
        ("--output_dir=x_y", "run", "x_y"),
        ("--model_path g_1.pth", "inputs.base_checkpoint", "g_1.pth"),
        ("--amharic_vocab t.model", "inputs.tokenizer", "t.model"),
        ("--num_epochs 8", "schedule.epochs", 8),
        ("--no-load_optimizer", "resume.weights_only", True),
        ("--no-load_scheduler", "resume.weights_only", True),
    ],
)
def test_old_spellings_are_accepted(line: str, key: str, value: object) -> None:
    assert parsed(line)[0][key] == value


@pytest.mark.parametrize("line", ["--batch-size 64", "--grad-accumulation 4", "--batch-size 8 --grad-accumulation 0"])
def test_half_a_batch_description_does_not_change_the_global_batch(line: str) -> None:
    keys, (note,) = parsed(line)
    assert "recipe.global_batch_samples" not in keys
    assert "recipe.global_batch_samples" in note


@pytest.mark.parametrize("line", ["--load-optimizer --no-load-scheduler", "--no-load_optimizer --load_scheduler"])
def test_one_of_two_states_is_not_dropped_silently(line: str) -> None:
    keys, notes = parsed(line)
    assert keys["resume.weights_only"] is True
    assert any("not followed" in note for note in notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("^ --amp ^", "cmd.exe"),
        ("--tokenizer tokenizers\\bpe.model", "tokenizers/bpe.model"),
        ("--train-manifest data\\train.jsonl", "data/train.jsonl"),
    ],
)
def test_a_command_line_of_windows_is_named_as_such(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(line)


def test_use_wandb_uses_it() -> None:
    assert parsed("--use-wandb") == ({"report.trackers": ["wandb"]}, [])
