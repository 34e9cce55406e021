"""The schema of run.yaml accepts what the program accepts, and marks what it refuses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from indextts_job.cli import main
from indextts_job.commands.config_schema import schema
from indextts_job.config import RunConfig, build_config
from indextts_job.errors import ConfigError
from indextts_job.strict_yaml import parse_yaml
from tests.support.goldens import CONFIG

REPOSITORY = Path(__file__).parents[2]
MINIMAL: dict[str, Any] = {"inputs": {"tokenizer": "t.model"}, "data": {"train_manifests": ["a.jsonl::am"]}}


def valid(document: object) -> bool:
    return not list(jsonschema.Draft7Validator(schema()).iter_errors(document))


def test_it_is_a_schema_and_accepts_all_defaults() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    assert valid(RunConfig().to_json())
    assert valid(parse_yaml(CONFIG.read_bytes(), "the test"))


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("[ks]*/**/run.yaml")), ids=lambda path: path.parent.name)
def test_it_accepts_the_files_of_the_repository(path: Path) -> None:
    assert valid(parse_yaml(path.read_bytes(), "the test"))


@pytest.mark.parametrize(
    "section",
    [
        {"schedule": {"learning_rate": 1e-5, "max_steps": 200}},
        {"schedule": {"max_steps": "${STEPS:-200}"}},
        {"validation": {"stop_unless": "text_loss < 3.0 by 5000"}},
        {"data": {"datasets": [{"manifest": "a.jsonl", "weight": 0.15, "language": "en"}]}},
        {"adapter": {"rank": 8, "targets": ["mlp.c_fc"]}},
        {"hardware": {"precision": "bfloat16"}},
    ],
    ids=str,
)
def test_what_is_right_is_accepted(section: dict[str, Any]) -> None:
    assert valid(MINIMAL | section)


@pytest.mark.parametrize(
    "section",
    [
        {"schedule": {"learning_rat": 1e-5}},
        {"shedule": {}},
        {"schedule": {"max_steps": 1.5}},
        {"schedule": {"max_steps": "many"}},
        {"schedule": {"learning_rate": -1}},
        {"recipe": {"dropout": 1}},
        {"hardware": {"precision": "int8"}},
        {"data": {"skip_bad_samples": "yes"}},
        {"data": {"datasets": [{"language": "en"}]}},
        {"data": {"train_manifests": [1]}},
        {"adapter": 8},
        {"resume": {"checks": "none"}},
    ],
    ids=str,
)
def test_what_the_program_refuses_is_marked(section: dict[str, Any]) -> None:
    assert not valid(MINIMAL | section)
    with pytest.raises(ConfigError):
        build_config(MINIMAL | section, "run.yaml", [])


def test_every_key_says_what_it_is() -> None:
    def keys(section: dict[str, Any], path: str = "") -> None:
        for name, found in section["properties"].items():
            if "properties" in found:
                keys(found, f"{path}{name}.")
            else:
                assert found.get("description"), path + name

    keys(schema())


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
