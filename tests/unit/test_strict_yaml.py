"""YAML has one meaning: numbers of YAML 1.2, every key once, and nothing that no configuration can mean."""

import math

import pytest

from indextts_job.errors import ConfigError
from indextts_job.strict_yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("2e-5", 2e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1:0", "1:0"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("2024-02-31", "2024-02-31"),
        ("'1'", "1"),
        ("=", "="),
        ("<<", "<<"),
        ("am", "am"),
    ],
)
def test_a_plain_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}", "run.yaml")
    assert found == {"key": value}
    assert isinstance(found, dict)
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3", ["run.yaml", "b.c", "line 3", "line 5"]),
        ("a: 1\n'a': 2", ["a stands in line 1 and again in line 2"]),
        ("a: {b: .inf}", ["line 1", "a.b is .inf", "finite"]),
        ("a: -.Inf", ["finite"]),
        ("a: [1, .nan]", ["a[1] is .nan"]),
        ("a: 1e999", ["1e999", "finite"]),
        ("a: " + "9" * 5000, ["a number of 5000 characters"]),
        ("\n\na: &x [1]\nb: *x", ["line 4", "alias *x"]),
        ("[" * 100_000, ["levels of nesting"]),
        ("a:\n" + "".join(f"{' ' * n}- \n" for n in range(60)), ["levels of nesting"]),
        ('a: "half \\ud800"', ["a is text with a NUL or half a character"]),
        ('a: "\\0"', ["a is text with a NUL"]),
        ("a: \0", ["not valid YAML"]),
        ("a: [", ["line 1", "not valid YAML"]),
        ("1: 2", ["1", "quote it"]),
        ("? [a]\n: b", ["['a']", "quote it"]),
        ("--- a\n--- b", ["another document"]),
        ("a: !!python/object/apply:os.system [x]", ["python/object"]),
        ("a: !!timestamp 2024-13-45", ["timestamp"]),
        ("a: !!float x", ["a is x"]),
        ("a: !!int 1_0", ["a is 1_0"]),
        (b"\xff\xff", ["not valid YAML"]),
    ],
)
def test_what_can_only_be_a_mistake_is_refused_with_its_place(text: str | bytes, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml")
    assert "\n" not in message
    assert len(message) < 1000
    for word in words:
        assert word in message


def test_aliases_that_would_unfold_without_end_cost_nothing() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    with pytest.raises(ConfigError, match=r"line 2.*alias"):
        parse_yaml(bomb, "run.yaml")


def test_numbers_are_finite_whatever_their_form() -> None:
    assert parse_yaml("a: 1e308", "f") == {"a": 1e308}
    found = parse_yaml("a: 1e-400", "f")
    assert isinstance(found, dict)
    assert math.isfinite(found["a"])
