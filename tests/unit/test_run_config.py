"""The configuration of a job as a launcher reads it: by the same rules as the trainer, before anything is queued."""

import os
from pathlib import Path

import pytest

from indextts_job.errors import ConfigError
from launch.job import Job
from launch.run_config import config_argument, read_config

MINIMAL = "data: {train_manifests: [a.jsonl]}\ninputs: {tokenizer: t.model}\n"


def job(*arguments: str) -> Job:
    return Job(arguments=arguments)


def test_a_path_with_an_equals_sign_is_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "lang=am" / "run.yaml"
    path.parent.mkdir()
    path.write_text(MINIMAL, encoding="utf-8")
    given = job(str(path), "schedule.max_steps=7", "--skip-bad-samples")
    assert config_argument(given) == str(path)
    file = read_config(given)
    assert file.text == MINIMAL
    assert file.config.schedule.max_steps == 7
    assert file.config.data.skip_bad_samples


@pytest.mark.parametrize("epochs", [("--epochs", "9"), ("--epochs=9",), ("--num_epochs", "9")])
def test_flags_count_as_they_do_in_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: tuple[str, ...]
) -> None:
    monkeypatch.setenv("STORE", "s3://b")
    monkeypatch.setenv("INDEXTTS_RUN_NAME", "of this machine")  # the job has another environment
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "run: ${STORE}/run\nschedule: {epochs: 2}\n", encoding="utf-8")
    given = job("--output-dir", "s3://b/other", str(path), *epochs, "--no-load-optimizer", "recipe.seed=3")
    assert config_argument(given) == str(path)
    config = read_config(given).config
    assert (config.run, config.schedule.epochs, config.recipe.seed) == ("s3://b/other", 9, 3)
    assert config.resume.weights_only
    assert config.report.run_name != "of this machine"
    assert read_config(given).written == {}  # what the command line overrides is not what the file says
    assert read_config(job(str(path))).written == {"run": "${STORE}/run"}


def test_a_value_of_an_option_of_prepare_is_no_second_configuration(tmp_path: Path) -> None:
    path = str(tmp_path / "prepare.yaml")
    given = Job(command="prepare", arguments=(path, "--worker", "w1", "--assemble"))
    assert config_argument(given) == path


def test_two_configurations_are_one_too_many(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(MINIMAL, encoding="utf-8")
    with pytest.raises(ConfigError, match="2 configuration files given"):
        read_config(job(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")))


def test_a_flag_that_the_trainer_does_not_have_is_not_queued(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(MINIMAL, encoding="utf-8")
    with pytest.raises(ConfigError, match="--epoch"):
        read_config(job(str(tmp_path / "run.yaml"), "--epoch", "3"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "run: a\nrun: b\n", "run stands in line 3 and again in line 4"),
        (MINIMAL + "optimizer: {epsilon: .inf}\n", "optimizer.epsilon is .inf"),
        (MINIMAL + "run: s3://\n", "names no bucket"),
        (MINIMAL + "speaking: {records: 4097}\n", "speaking.records is 4097"),  # their figures would take minutes
        ("[" * 1000, "levels of nesting"),
    ],
)
def test_what_the_trainer_would_refuse_is_not_queued(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_config(job(str(path)))
    assert words in str(caught.value)


def test_a_configuration_is_a_regular_file_of_a_fitting_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"run: \xe9")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(2**40)
    for name, words in (
        ("pipe.yaml", "no regular file"),
        (".", "no regular file"),
        ("none.yaml", "No such file"),
        ("large.yaml", "which no configuration has"),
        ("latin.yaml", "not UTF-8"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_config(job(str(tmp_path / name)))
