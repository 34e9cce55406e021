"""Environment variables in a run.yaml: what they are replaced by, what is recorded, and where they are not read."""

from pathlib import Path

import pytest

from indextts_job.commands.run_file import read_run_file
from indextts_job.config import build_config, flatten, recorded_config
from indextts_job.errors import ConfigError
from indextts_job.strict_yaml import parse_yaml
from indextts_job.variables import has_variables, with_variables, written_places

ENVIRONMENT = {"DATA": "/data", "EMPTY": "", "STEPS": "200", "RATE": "1e-4", "YES": "true"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${DATA}/am", "/data/am"),
        ("${DATA:-elsewhere}/${NONE:-am}", "/data/am"),
        ("${EMPTY}x", "x"),
        ("${EMPTY:-full}", "full"),
        ("${NONE:-}", ""),
        ("$${DATA}", "${DATA}"),
        ("$DATA and $ and {DATA}", "$DATA and $ and {DATA}"),
        ("${DATA}${DATA}", "/data/data"),
    ],
)
def test_a_variable_is_replaced(written: str, expected: str) -> None:
    assert with_variables({"a": [written]}, ENVIRONMENT, "run.yaml") == {"a": [expected]}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("${NONE}", r"run.yaml: inputs.tokenizer: the environment variable NONE is not set"),
        ("${1X}", r"run.yaml: inputs.tokenizer: expected \$\{NAME\}"),
        ("${DATA", r"expected \$\{NAME\}"),
        ("${DATA:-${NONE}}", r"expected \$\{NAME\}"),
    ],
)
def test_what_is_no_variable_or_not_set_is_said(written: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_variables({"inputs": {"tokenizer": written}}, ENVIRONMENT, "run.yaml")


TEXT = """
run: ${DATA}/run
inputs: {tokenizer: "${DATA}/bpe.model"}
data: {train_manifests: ["${DATA}/a.jsonl", b.jsonl], skip_bad_samples: "${YES}"}
schedule: {max_steps: "${STEPS}", learning_rate: "${RATE}"}
hardware: {precision: "${PRECISION:-auto}"}
report: {run_name: "${STEPS}"}
"""


def test_numbers_are_recorded_as_they_were_and_places_as_they_are_written(tmp_path: Path, monkeypatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run.yaml").write_text(TEXT)
    file = read_run_file(str(tmp_path / "run.yaml"))
    config = build_config(file.document, "run.yaml", [])
    assert config.run == "/data/run"
    assert config.data.train_manifests == ("/data/a.jsonl", "b.jsonl")
    assert config.data.skip_bad_samples is True
    assert (config.schedule.max_steps, config.schedule.learning_rate) == (200, 1e-4)
    assert config.hardware.precision == "auto"
    assert config.report.run_name == "200"
    assert all(type(value) is str for value in (config.run, *config.data.train_manifests, config.report.run_name))
    recorded = flatten(recorded_config(config, file.written))
    assert recorded["run"] == "${DATA}/run"
    assert recorded["data.train_manifests"] == ["${DATA}/a.jsonl", "b.jsonl"]
    assert recorded["data.skip_bad_samples"] is True
    assert (recorded["schedule.max_steps"], recorded["hardware.precision"]) == (200, "auto")
    assert recorded["schedule.learning_rate"] == 1e-4


def test_only_places_are_recorded_as_they_are_written() -> None:
    document = parse_yaml(TEXT, "run.yaml")
    assert isinstance(document, dict)
    assert has_variables(document["data"])
    assert set(written_places(flatten(document))) == {
        *("run", "inputs.tokenizer", "data.train_manifests", "data.skip_bad_samples", "report.run_name")
    }


def test_a_wrong_number_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.max_steps is 'many', expected a whole number"):
        build_config(with_variables({"schedule": {"max_steps": "${NONE:-many}"}}, {}, "x"), "run.yaml", [])
