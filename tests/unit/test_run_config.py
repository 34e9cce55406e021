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
    text, config = read_config(given)
    assert text == MINIMAL
    assert config.schedule.max_steps == 7


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
