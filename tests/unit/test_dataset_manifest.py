"""Dataset manifests: arguments, records, and every bad line named."""

import json

import pytest

from indextts_job.data.manifest import parse_records
from indextts_job.data.manifest_source import ManifestSource, is_manifest, parse_source
from indextts_job.errors import DataError

SOURCE = ManifestSource("data/pairs.jsonl", "am")
PAIR = {
    "id": "b__a",
    "prompt_condition_path": "condition/a.npy",
    "prompt_emo_vec_path": "emo_vec/a.npy",
    "target_text_ids_path": "text_ids/b.npy",
    "target_codes_path": "/abs/codes/b.npy",
    "target_text_len": 5,
    "target_code_len": 9,
    "unknown_field": {"ignored": True},
}


@pytest.mark.parametrize(
    ("argument", "url", "language"),
    [
        ("a.jsonl", "a.jsonl", ""),
        ("a.jsonl::AM", "a.jsonl", "am"),
        ("a.jsonl@am", "a.jsonl", "am"),
        ("a.jsonl=zh-CN", "a.jsonl", "zh-cn"),
        ("s3://bucket/a.jsonl::am", "s3://bucket/a.jsonl", "am"),
        ("data/lang=am/train.jsonl", "data/lang=am/train.jsonl", ""),
        ("simplecache::s3://bucket/a.jsonl", "simplecache::s3://bucket/a.jsonl", ""),
        ("there@am", "there@am", ""),
    ],
)
def test_a_manifest_argument_is_a_path_and_perhaps_a_language(argument: str, url: str, language: str) -> None:
    assert parse_source(argument, exists=lambda path: path == "there@am") == ManifestSource(url, language)


def test_a_pair_is_read_and_unknown_fields_and_blank_lines_are_ignored() -> None:
    (record,) = parse_records(["", json.dumps(PAIR), "  "], SOURCE)
    assert record.id == "b__a"
    assert record.condition_path == "data/condition/a.npy"
    assert record.codes_path == "/abs/codes/b.npy"
    assert (record.text_tokens, record.code_tokens, record.language) == (5, 9, "am")
    assert record.origin == "data/pairs.jsonl:2"


@pytest.mark.parametrize(
    ("change", "language"),
    [
        ({"target_language": " ZH "}, "zh"),
        ({"language": "en"}, "en"),
        ({"target_language": "", "language": "en"}, "en"),
    ],
)
def test_a_record_knows_its_language_better_than_the_argument(change: dict[str, str], language: str) -> None:
    assert parse_records([json.dumps(PAIR | change)], SOURCE)[0].language == language


def test_an_empty_emotion_path_counts_as_absent() -> None:
    change = {"prompt_emo_vec_path": "", "target_emo_vec_path": "emo_vec/b.npy"}
    assert parse_records([json.dumps(PAIR | change)], SOURCE)[0].emotion_path == "data/emo_vec/b.npy"


SINGLE = {
    "id": "a",
    "condition_path": "c.npy",
    "codes_path": "d.npy",
    "text_ids_path": "t.npy",
    "emo_vec_path": "e.npy",
}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id": '], ["data/pairs.jsonl:1", "not JSON"]),
        (["[1]"], [":1", "a JSON list"]),
        ([json.dumps(PAIR), json.dumps({**PAIR, "target_text_len": "many"})], [":2", "target_text_len is 'many'"]),
        ([json.dumps({**PAIR, "target_code_len": True})], ["target_code_len is True"]),
        ([json.dumps({**PAIR, "id": ""})], ["id is ''"]),
        ([json.dumps({**PAIR, "prompt_emo_vec_path": None})], ["no emotion path"]),
        ([json.dumps(SINGLE)], ["holds single records", ":1", "pairing tool"]),
        ([json.dumps(PAIR), json.dumps(SINGLE)], ["mixes single and paired", ":2"]),
        (["", " "], ["no records"]),
        (["{}"] * 30, ["… and 10 more"]),
        (["[" * 100_000], [":1", "not JSON"]),
        (['{"target_text_len": ' + "9" * 5000 + "}"], [":1", "not JSON"]),
        ([json.dumps({**PAIR, "id": "half \ud800"})], ["id is", "half a character"]),
        ([json.dumps({**PAIR, "target_codes_path": "a\0b"})], ["target_codes_path", "NUL"]),
        ([json.dumps({**PAIR, "target_language": {"a": 1}})], ["the language is {'a': 1}"]),
        ([json.dumps({**PAIR, "prompt_emo_vec_path": " "})], ["prompt_emo_vec_path is ' '"]),
        ([json.dumps({**PAIR, "prompt_emo_vec_path": "", "target_emo_vec_path": ""})], ["no emotion path"]),
        ([json.dumps({**PAIR, "target_text_len": 5.5})], ["target_text_len is 5.5"]),
        ([json.dumps({**PAIR, "id": ["x" * 9000]})], ["id is", "…"]),
        ([json.dumps({**PAIR, "target_codes_path": "reference://a::b"})], ["leads away"]),
    ],
)
def test_a_bad_manifest_is_one_message_that_names_every_line(lines: list[str], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        parse_records(lines, SOURCE)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("depth", range(100, 1100, 37))
def test_no_depth_of_nesting_ends_in_anything_but_a_message(depth: int) -> None:
    for key in ("id", "target_text_len", "target_language"):
        nested = json.dumps({**PAIR, key: 0}).replace(f'"{key}": 0', f'"{key}": ' + "[" * depth + "]" * depth)
        with pytest.raises(DataError):
            parse_records([nested], SOURCE)


@pytest.mark.parametrize("written", [5, 5.0, "5", "5.0", " 5 "])
def test_a_length_may_be_written_as_programs_do_that_know_no_integers(written: object) -> None:
    assert parse_records([json.dumps({**PAIR, "target_text_len": written})], SOURCE)[0].text_tokens == 5


SIGNED = "https://host.example/data/pairs.jsonl?X-Amz-Expires=60&X-Amz-Signature=0123&sp=rl"


def test_a_signed_link_is_a_manifest_and_its_signature_is_in_no_message() -> None:
    source = parse_source(SIGNED, exists=lambda _path: False)
    assert source == ManifestSource(SIGNED, "")
    assert parse_source(f"{SIGNED}::am", exists=lambda _path: False) == ManifestSource(SIGNED, "am")
    assert is_manifest(SIGNED)
    (record,) = parse_records([json.dumps({**PAIR, "target_codes_path": "codes/b.npy"})], source)
    assert record.codes_path == "https://host.example/data/codes/b.npy"
    with pytest.raises(DataError) as caught:
        parse_records(["{}"], source)
    assert "X-Amz" not in str(caught.value) + record.origin
