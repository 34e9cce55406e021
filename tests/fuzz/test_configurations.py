"""Run configurations, overrides, the old trainer's flags and the model's configuration."""

import contextlib
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.cli import build_parser
from indextts_job.config import RunConfig, all_keys, build_config, parse_override, split_settings
from indextts_job.demo.world import World
from indextts_job.errors import ConfigError
from indextts_job.legacy import flags
from indextts_job.model.config import carried_shapes, gpt_config, trained_shapes
from indextts_job.storage import urls
from indextts_job.strict_yaml import parse_yaml
from tests.fuzz.outcomes import taken_or_refused
from tests.fuzz.strategies import Damage, changed, damaged, damages, texts, values

MINIMAL: dict[str, Any] = {"data": {"train_manifests": ["a.jsonl"]}, "inputs": {"tokenizer": "t.model"}}
WHOLE = build_config(MINIMAL, "minimal", []).to_json()
WRITTEN = yaml.safe_dump(WHOLE).encode()
FLAGS = sorted(option for option in build_parser().parse_args(["train"]).__dict__)


def accepted(config: RunConfig | None) -> None:
    """What is accepted can be stored in a checkpoint and read again."""
    if config is not None:
        text = json.dumps(config.to_json(), allow_nan=False, ensure_ascii=False)
        assert RunConfig.from_json(json.loads(text), "stored") == config


@given(changed(WHOLE))
def test_any_document(document: Any) -> None:
    accepted(taken_or_refused(lambda: build_config(document, "run.yaml", [])))


@given(changed(WHOLE).map(lambda document: yaml.safe_dump(document, allow_unicode=True)))
def test_any_document_written_as_yaml(text: str) -> None:
    accepted(taken_or_refused(lambda: build_config(parse_yaml(text, "run.yaml"), "run.yaml", [])))


@given(damages(), texts())
def test_any_bytes_as_yaml(damage: list[Damage], text: str) -> None:
    for content in (damaged(WRITTEN, damage), text.encode("utf-8", "surrogatepass")):
        taken_or_refused(lambda content=content: parse_yaml(content, "run.yaml"))  # type: ignore[misc]
    content = damaged(WRITTEN, damage)
    accepted(taken_or_refused(lambda: build_config(parse_yaml(content, "run.yaml"), "run.yaml", [])))


@given(st.lists(st.tuples(st.sampled_from(all_keys()) | texts(), texts()), max_size=3))
def test_any_override(settings: list[tuple[str, str]]) -> None:
    def act() -> RunConfig:
        arguments = [f"{key}={value}" for key, value in settings]
        _, overrides = split_settings(arguments, lambda _path: False)
        return build_config(MINIMAL, "minimal", [("command line", dict(overrides))])

    accepted(taken_or_refused(act))
    taken_or_refused(lambda: parse_override(settings[0][0] if settings else ""))


OPTIONS = sorted(
    {
        *(
            f"--{flag.replace('_', '-')}"
            for flag in FLAGS
            if flag not in ("act", "command", "settings", "stop", "help")
        ),
        *("--model_path", "--num_epochs", "--no-load-optimizer", "--no-such-flag", "--mixed-precision"),
    }
)


@given(st.lists(st.sampled_from(OPTIONS) | texts() | st.integers().map(str) | st.floats().map(str), max_size=6))
def test_any_flags(arguments: list[str]) -> None:
    def act() -> RunConfig:
        parser = build_parser()
        given_arguments, rest = parser.parse_known_args(["train", *flags.normalise(arguments)])
        keys, _ = flags.overrides(given_arguments, {"INDEXTTS_RUN_NAME": arguments[0] if arguments else ""})
        _, overrides = split_settings([*given_arguments.settings, *rest], lambda _path: False)
        return build_config(MINIMAL, "minimal", [("flags", keys), ("command line", dict(overrides))])

    with contextlib.suppress(SystemExit):  # -h prints and ends
        accepted(taken_or_refused(act))


@pytest.fixture(scope="module")
def model_document(world: World) -> Any:
    return yaml.safe_load(world.model_config.read_text(encoding="utf-8"))


@given(st.data())
def test_any_model_configuration(model_document: Any, data: st.DataObject) -> None:
    document = data.draw(changed(model_document, most=3))
    config = taken_or_refused(lambda: gpt_config(document, "config.yaml"))
    if config is not None:
        json.dumps(document, allow_nan=False)
        assert trained_shapes(config, 10)
        assert carried_shapes(config)


@given(texts(), st.sampled_from(("data/m.jsonl", "m.jsonl", "s3://bucket/data/m.jsonl", "https://host/m.jsonl?a=b")))
def test_any_path_in_a_data_file(path: str, document: str) -> None:
    try:
        found = urls.resolved(path, document)
    except ValueError:
        return
    if not urls.is_local(document):
        assert found.startswith(document[: document.index("/", 8) + 1])
        assert ".." not in found.split("/")
        taken_or_refused(lambda: urls.demand_openable(found))
    else:
        assert urls.is_local(found)
        taken_or_refused(lambda: urls.local_path(found))


@given(texts() | st.tuples(texts(), texts()).map("://".join))
def test_any_url(url: str) -> None:
    try:
        protocol = urls.demand_openable(url)
    except ConfigError:
        return
    assert protocol in urls.REMOTE_PROTOCOLS
    assert "::" not in url


@given(values())
def test_any_value_as_the_whole_document(value: Any) -> None:
    accepted(taken_or_refused(lambda: build_config(value, "run.yaml", [])))
    taken_or_refused(lambda: gpt_config(value, "config.yaml"))
