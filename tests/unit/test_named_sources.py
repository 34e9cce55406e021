"""The sources of a run, as the configuration names them: by `data.datasets`, or by weights behind `@`."""

from typing import Any

import pytest

from indextts_job.config import RunConfig, build_config
from indextts_job.data.manifest import DataConfig
from indextts_job.data.manifest_source import ManifestSource, parse_source
from indextts_job.data.mixture import Change, Mixture
from indextts_job.data.named_sources import NamedSources, named_sources, short_names, training_arguments
from indextts_job.data.order import Order
from indextts_job.errors import ConfigError

THERE = {"am.jsonl", "en.jsonl", "zh.jsonl", "there@2", "there", "s3://b/x@y.jsonl", "shards", "https://h/m.jsonl?s=a"}


def exists(path: str) -> bool:
    return path in THERE


def config(**data: Any) -> RunConfig:  # values of keys
    return build_config({"data": data, "inputs": {"tokenizer": "t.model"}}, "run.yaml", [])


def sources(**data: Any) -> NamedSources:  # values of keys
    return named_sources(config(**data).data, exists)


@pytest.mark.parametrize(
    ("argument", "url", "language", "weight"),
    [
        ("am.jsonl@100", "am.jsonl", "", 100_000_000),
        ("am.jsonl@0.15", "am.jsonl", "", 150_000),
        ("am.jsonl@.5", "am.jsonl", "", 500_000),
        ("am.jsonl@2.", "am.jsonl", "", 2_000_000),
        ("am.jsonl@0.3333333333", "am.jsonl", "", 333_333),
        ("am.jsonl::am@15", "am.jsonl", "am", 15_000_000),
        ("am.jsonl::az:tt@0.15", "am.jsonl", "az:tt", 150_000),
        ("am.jsonl@am@15", "am.jsonl", "am", 15_000_000),
        ("am.jsonl=am@15", "am.jsonl", "am", 15_000_000),
        ("shards@1", "shards", "", 1_000_000),
        ("s3://b/x@y.jsonl@3", "s3://b/x@y.jsonl", "", 3_000_000),
        # The path before the weight has to exist, and what exists as a whole is a path, as ever.
        ("gone.jsonl@15", "gone.jsonl@15", "", None),
        ("there@2", "there@2", "", None),
        ("there@3", "there", "", 3_000_000),
        # No decimal numbers.
        ("am.jsonl@am", "am.jsonl", "am", None),
        ("am.jsonl@-1", "am.jsonl@-1", "", None),
        ("am.jsonl@1e3", "am.jsonl@1e3", "", None),
        ("am.jsonl@1234567", "am.jsonl@1234567", "", None),
        ("am.jsonl@٣", "am.jsonl@٣", "", None),
        # The query of a signed link ends where a language begins.
        ("https://h/m.jsonl?s=a::en@0.15", "https://h/m.jsonl?s=a", "en", 150_000),
        ("https://h/m.jsonl?s=a@0.15", "https://h/m.jsonl?s=a@0.15", "", None),
    ],
)
def test_an_argument_may_end_with_a_weight(argument: str, url: str, language: str, weight: int | None) -> None:
    assert parse_source(argument, exists) == ManifestSource(url, language, weight)


def test_several_manifests_without_weights_are_one_source() -> None:
    found = sources(train_manifests=["am.jsonl::am", "en.jsonl::en"])
    assert found == NamedSources(arguments=("am.jsonl::am", "en.jsonl::en"))
    assert found.order([30, 10], 5, 8, 2) == Order(num_samples=40, seed=5, global_batch_samples=8, total_samples=80)


@pytest.mark.parametrize(
    "data",
    [
        {"train_manifests": ["am.jsonl::am@15"]},
        {"datasets": [{"manifest": "am.jsonl", "language": "am", "weight": 15}]},
    ],
)
def test_one_source_keeps_its_order_whatever_its_weight(data: dict[str, Any]) -> None:
    assert sources(**data).order([30], 5, 8, 2) == Order(
        num_samples=30, seed=5, global_batch_samples=8, total_samples=60
    )


def test_weights_on_the_command_line_and_in_the_file_are_the_same_mixture() -> None:
    short = sources(train_manifests=["am.jsonl::am@1", "en.jsonl::en@0.15"])
    long = sources(
        datasets=[
            {"manifest": "am.jsonl", "language": "am"},
            {"manifest": "en.jsonl", "language": "en", "weight": 0.15},
        ]
    )
    assert short.changes == long.changes == (Change(0, (1_000_000, 150_000)),)
    assert short.names == long.names == ("am", "en")
    assert long.arguments == ("am.jsonl::am", "en.jsonl::en")
    assert short.order([30, 10], 5, 8, 2) == Mixture(
        sizes=(30, 10), seed=5, global_batch_samples=8, changes=short.changes, epochs=2
    )


def test_a_source_without_a_weight_beside_one_with_it_counts_1() -> None:
    # As the public recipe reads `--train-manifest tr.jsonl::tr --train-manifest en.jsonl::en@0.15`.
    assert sources(train_manifests=["am.jsonl", "en.jsonl@0.15"]).changes == (Change(0, (1_000_000, 150_000)),)


def test_sources_have_names_that_tell_them_apart() -> None:
    found = sources(
        datasets=[
            {"manifest": "am.jsonl", "language": "am", "name": "radio"},
            {"manifest": "am.jsonl", "language": "am"},
            {"manifest": "am.jsonl", "language": "am"},
            {"manifest": "en.jsonl", "language": "en"},
            {"manifest": "s3://user:secret@b/zh.jsonl"},
        ]
    )
    assert found.names == ("radio", "am.jsonl (2)", "am.jsonl (3)", "en", "s3://***@b/zh.jsonl")


def test_weights_may_change_at_steps() -> None:
    found = sources(
        train_manifests=["am.jsonl@100", "en.jsonl@0"],
        mixture_from_step=[{"step": 50, "weights": [85, 15]}, {"step": 90, "weights": [1, 0]}],
    )
    assert found.changes == (
        Change(0, (100_000_000, 0)),
        Change(50, (85_000_000, 15_000_000)),
        Change(90, (1_000_000, 0)),
    )


def test_the_configuration_survives_a_checkpoint() -> None:
    given = config(
        datasets=[{"manifest": "am.jsonl", "weight": 0.15}, {"manifest": "en.jsonl", "name": "old"}],
        mixture_from_step=[{"step": 50, "weights": [85, 15]}],
    )
    assert RunConfig.from_json(given.to_json(), "the record") == given
    assert training_arguments(given.data) == ("am.jsonl", "en.jsonl")


TWO = [{"manifest": "am.jsonl"}, {"manifest": "en.jsonl"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.train_manifests is empty"),
        ({"train_manifests": ["am.jsonl"], "datasets": TWO}, "both given"),
        ({"datasets": "am.jsonl"}, "data.datasets is 'am.jsonl', expected a list of entries"),
        ({"datasets": ["am.jsonl"]}, r"data.datasets\[0\] is 'am.jsonl', expected the keys manifest, language"),
        (
            {"datasets": [{"manifest": "a", "weights": 1}]},
            r"data.datasets\[0\]: unknown key 'weights'. Did you mean weight",
        ),
        ({"datasets": [{"manifest": "a", "x": 1}]}, "unknown key 'x'. Expected manifest, language, weight, name"),
        ({"datasets": [{"weight": 1}]}, r"data.datasets\[0\] has no manifest"),
        ({"datasets": [{"manifest": " "}]}, r"data.datasets\[0\].manifest is empty"),
        ({"datasets": [{"manifest": "a", "language": "a/b"}]}, r"data.datasets\[0\].language is 'a/b'"),
        ({"datasets": [{"manifest": "a", "weight": -1}]}, r"data.datasets\[0\].weight is -1, expected at least 0"),
        ({"datasets": [{"manifest": "a", "weight": 1e9}]}, r"data.datasets\[0\].weight is 1e\+09"),
        ({"datasets": [{"manifest": "a", "weight": 1e-9}]}, r"data.datasets\[0\].weight is 1e-09, expected 0, or at"),
        (
            {"datasets": [{"manifest": "a", "weight": "1"}]},
            r"data.datasets\[0\].weight is '1', expected a finite number",
        ),
        ({"datasets": [{"manifest": "a", "name": "n"}, {"manifest": "b", "name": "n"}]}, "n names several sources"),
        ({"datasets": [{"manifest": "a", "weight": 0}, {"manifest": "b"}]}, "from step 0 on: the first source"),
        ({"datasets": [{"manifest": "a"}] * 1001}, "1001 sources have a weight; a mixture has at most 1000"),
        ({"train_manifests": ["am.jsonl@0", "en.jsonl@1"]}, "from step 0 on: the first source"),
        (
            {"datasets": TWO, "mixture_from_step": [{"step": 5, "weights": [1]}]},
            "step 5 has 1 weights for 2 sources",
        ),
        (
            {"datasets": TWO, "mixture_from_step": [{"step": 5, "weights": [0, 1]}]},
            "from step 5 on: the first source, the main one, needs one",
        ),
        (
            {"datasets": TWO, "mixture_from_step": [{"step": 5, "weights": [1, -1]}]},
            "a weight from step 5 on is -1",
        ),
        (
            {"datasets": TWO, "mixture_from_step": [{"step": 5, "weights": 3}]},
            r"mixture_from_step\[0\].weights is 3, expected a list of finite numbers",
        ),
        (
            {"datasets": TWO, "mixture_from_step": [{"step": 0, "weights": [1, 1]}]},
            r"mixture_from_step\[0\].step is 0, expected at least 1",
        ),
        (
            {"datasets": TWO, "mixture_from_step": [{"step": 5, "weights": [1, 1]}] * 2},
            "has the steps 5, 5, expected rising ones",
        ),
        (
            {"train_manifests": ["am.jsonl"], "mixture_from_step": [{"step": 5, "weights": [1]}]},
            "there is one source",
        ),
    ],
)
def test_impossible_sources_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sources(**data)


def test_the_weights_of_datasets_are_judged_before_any_file_is_looked_for() -> None:
    with pytest.raises(ConfigError, match="step 5 has 1 weights for 2 sources"):
        config(datasets=TWO, mixture_from_step=[{"step": 5, "weights": [1]}])


def test_a_weight_has_one_place() -> None:
    with pytest.raises(ConfigError, match="a manifest ends with @weight"):
        sources(datasets=[{"manifest": "am.jsonl@15"}, {"manifest": "en.jsonl"}])


def test_a_weight_of_which_nothing_is_left_is_refused() -> None:
    for argument in ("en.jsonl@0.0000001", "en.jsonl::en@.00000001"):
        with pytest.raises(ConfigError, match=r"the weight of en\.jsonl.* is 1e-0[78], expected 0"):
            parse_source(argument, lambda path: "@" not in path)
    data = DataConfig(train_manifests=("en.jsonl@0",))
    with pytest.raises(ConfigError, match="has the weight 0 and is the only source"):
        named_sources(data, lambda path: "@" not in path)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], []),
        (["am"], ["am"]),
        (["am", "en"], ["am", "en"]),
        (["s3://b/am/train.jsonl", "s3://b/en/val.jsonl"], ["train.jsonl", "val.jsonl"]),
        (["s3://b/am/train.jsonl", "s3://b/en/train.jsonl/", "x"], ["am/train.jsonl", "en/train.jsonl", "x"]),
        (["s3://b/train", "s3://c/train"], ["b/train", "c/train"]),
        (["a/train", "train"], ["a/train", "train"]),
    ],
)
def test_sources_have_short_names_that_tell_them_apart(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short
