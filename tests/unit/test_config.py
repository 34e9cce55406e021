"""The configuration: precedence, types, and errors that name the nearest key."""

import typing
from dataclasses import is_dataclass
from typing import Any

import pytest
import yaml

from indextts_job.commands.config_help import documented_defaults
from indextts_job.config import RunConfig, all_keys, build_config, flatten, parse_override, split_settings
from indextts_job.errors import ConfigError
from indextts_job.strict_yaml import parse_yaml

MINIMAL: dict[str, Any] = {"data": {"train_manifests": ["a.jsonl"]}, "inputs": {"tokenizer": "t.model"}}


def test_later_layers_win_over_the_file_and_the_file_over_defaults() -> None:
    document = {**MINIMAL, "schedule": {"epochs": 3, "max_steps": 5}, "recipe": {"seed": 1}}
    layers = [("flags", {"schedule.max_steps": 6, "recipe.seed": 2}), ("command line", {"recipe.seed": 3})]
    config = build_config(document, "run.yaml", layers)
    assert (config.schedule.epochs, config.schedule.max_steps, config.recipe.seed) == (3, 6, 3)
    assert config.schedule.warmup_steps == 1000


def test_the_defaults_are_the_published_recipe() -> None:
    config = build_config(MINIMAL, "f", [])
    assert (config.schedule.learning_rate, config.schedule.warmup_steps, config.schedule.epochs) == (2e-5, 1000, 10)
    assert (config.optimizer.weight_decay, config.optimizer.grad_clip) == (0.01, 1.0)
    assert (config.recipe.text_loss_weight, config.recipe.mel_loss_weight, config.recipe.dropout) == (0.2, 0.8, 0.1)
    assert (config.recipe.global_batch_samples, config.recipe.seed) == (32, 1234)
    assert (config.validation.interval_steps, config.checkpoint.interval_steps, config.checkpoint.keep) == (
        1000,
        1000,
        3,
    )
    assert (config.run, config.report.log_interval_steps) == ("trained_ckpts", 100)


def test_a_configuration_survives_json() -> None:
    config = build_config(
        MINIMAL, "f", [("cli", {"resume.accept": ["schedule.epochs"], "hardware.precision": "float16"})]
    )
    assert RunConfig.from_json(config.to_json(), "again") == config
    assert set(flatten(config.to_json())) == set(all_keys())


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("schedule.max_steps=200", ("schedule.max_steps", 200)),
        ("a=[x, y]", ("a", ["x", "y"])),
        ("a=", ("a", None)),
        ("schedule.learning_rate=2e-5", ("schedule.learning_rate", 2e-5)),
        ("run=s3://b/c=d", ("run", "s3://b/c=d")),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(argument: str, expected: tuple[str, object]) -> None:
    assert parse_override(argument) == expected


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schedul.max_steps", 1, ["unknown key schedul.max_steps", "Did you mean schedule.max_steps?"]),
        ("max_steps", 1, ["unknown key max_steps", "schedule.max_steps"]),
        ("schedule.max_step", 1, ["Did you mean schedule.max_steps?"]),
        ("schedule.max_steps.deep", 1, ["unknown key"]),
        ("schedule", 1, ["is a section"]),
        ("schedule.max_steps", "many", ["schedule.max_steps is 'many'", "a whole number"]),
        ("schedule.max_steps", 1.5, ["a whole number"]),
        ("schedule.max_steps", float("inf"), ["a whole number"]),
        ("schedule.max_steps", True, ["a whole number"]),
        ("schedule.max_steps", -1, ["at least 0"]),
        ("schedule.learning_rate", "fast", ["a finite number"]),
        ("schedule.learning_rate", float("nan"), ["schedule.learning_rate is nan", "a finite number"]),
        ("optimizer.epsilon", float("inf"), ["optimizer.epsilon is inf", "a finite number"]),
        ("optimizer.epsilon", -1e-8, ["optimizer.epsilon is -1e-08", "at least 0"]),
        ("schedule.learning_rate", "1e-4", ["a finite number"]),
        ("schedule.epochs", 10**18, ["schedule.epochs is", "at most 1000000"]),
        ("hardware.threads", 10**18, ["hardware.threads is", "at most 4096"]),
        ("recipe.seed", 2**63, ["at most 9223372036854775807"]),
        ("checkpoint.longest_seconds", 1.0, ["at least 60, the shortest"]),
        ("storage.log_interval_seconds", 0, ["storage.log_interval_seconds is 0", "at least 0.1"]),
        ("storage.endpoint_url", "nonsense", ["storage.endpoint_url is 'nonsense'", "address"]),
        ("run", "", ["run is empty"]),
        ("run", "s3://", ["names no bucket"]),
        ("run", "zip://a::s3://bucket/b", ["chains"]),
        ("run", "https://host/run", ["a web server keeps no runs"]),
        ("report.run_name", "../../x", ["report.run_name is '../../x'"]),
        ("report.run_name", "/x", ["report.run_name"]),
        ("report.run_name", "a\nb", ["report.run_name"]),
        ("report.run_name", "", ["report.run_name"]),
        ("resume.checks", ["auto"], ["one of auto"]),
        ("data.cache_folder", ["x" * 9000], ["a text", "…"]),
        ("data.cache_folder", "s3://bucket/cache", ["data.cache_folder is 's3://bucket/cache'", "a local path"]),
        ("data.cache_folder", "~nosuchuser/cache", ["~nosuchuser"]),
        ("report.prometheus_file", "s3://bucket/x", ["report.prometheus_file", "a local path"]),
        ("recipe.dropout", 1.0, ["below 1"]),
        ("recipe.global_batch_samples", 0, ["at least 1"]),
        ("recipe.new_rows", "zeros", ["one of spread, mean, normal"]),
        ("data.skip_bad_samples", "yes", ["true or false"]),
        ("data.train_manifests", [1], ["a list of strings"]),
        ("data.train_manifests", [], ["data.train_manifests is empty"]),
        ("inputs.tokenizer", "", ["inputs.tokenizer is not set"]),
        ("optimizer.beta2", 1, ["below 1"]),
        ("adapter.targets", ["attn.c_atn"], ["adapter.targets is ['attn.c_atn']", "attn.c_attn"]),
        ("adapter.targets", [], ["adapter.targets is []"]),
        ("adapter.rank", -1, ["at least 0"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(MINIMAL, "run.yaml", [("command line", {key: value})])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("document", [[1], "text", {"schedule": 3}, {"schedule": {"epochz": 3}}, {"shedule": {}}])
def test_a_wrong_file_is_refused(document: object) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        build_config(document, "run.yaml", [])


def test_the_help_explains_every_key_and_is_the_default_configuration() -> None:
    text = documented_defaults()
    for document in (parse_yaml(text, "help"), yaml.safe_load(text)):
        assert isinstance(document, dict)
        assert RunConfig.from_json(document, "help") == RunConfig()
    for key in all_keys():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{key.rpartition('.')[2]}:"))
        before = text[: text.index(line)].rstrip("\n").splitlines()[-1]
        assert before.strip().startswith("# "), key


def test_yaml_floats_without_a_dot_are_numbers() -> None:
    # YAML 1.1 reads 2e-5 as a text.
    assert build_config(MINIMAL, "f", [("c", dict([parse_override("schedule.learning_rate=2e-5")]))]).schedule == (
        build_config(MINIMAL, "f", []).schedule
    )


@pytest.mark.parametrize(
    ("argument", "is_file"),
    [
        ("run.yaml", True),
        ("data/lang=am/run.yaml", True),
        ("data/lang=am/there", True),
        ("schedule.max_steps=run.yaml", False),
        ("run=data/run.yaml", False),
        ("schedul=1", False),
    ],
)
def test_an_argument_is_a_file_unless_it_begins_with_a_key(argument: str, is_file: bool) -> None:
    paths, overrides = split_settings([argument], exists=lambda path: path == "data/lang=am/there")
    assert (paths == [argument]) is is_file
    assert bool(overrides) is not is_file


@pytest.mark.parametrize("value", ["[" * 10_000, "9" * 5000, '"\\ud800"', "&a [*a]", "\0", "!!python/name:os"])
def test_an_override_without_a_plain_value_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"command line: the value of data\.cache_folder"):
        parse_override(f"data.cache_folder={value}")


def test_every_number_has_bounds() -> None:
    def unbounded(cls: Any, prefix: str) -> list[str]:
        found = []
        for name, hint in typing.get_type_hints(cls, include_extras=True).items():
            if is_dataclass(hint):
                found += unbounded(hint, f"{prefix}{name}.")
            elif hint in (int, float):
                found.append(prefix + name)
        return found

    assert unbounded(RunConfig, "") == []
