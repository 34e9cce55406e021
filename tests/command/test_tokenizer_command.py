"""`indextts-job tokenizer`: text in, a checked extension out, nothing written over."""

import json
from pathlib import Path

import pytest

from indextts_job.cli import main
from indextts_job.demo.world import base_tokenizer
from indextts_job.tokenizer.loading import load_tokenizer
from tests.support.amharic import sentences
from tests.support.ranks import BASE_TEXTS, small_ranks


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bpe.model").write_bytes(base_tokenizer())
    pairs = [{"id": str(i), "target_text": text} for i, text in enumerate(sentences(200)) for _ in range(2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (tmp_path / "more.txt").write_text("\n".join(sentences(400)[200:]), encoding="utf-8")
    return tmp_path


def test_an_extension_is_made_checked_and_described(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["pairs.jsonl", "more.txt::am", "--base", "bpe.model", "--pieces", "300"]
    assert main(["tokenizer", "extend", *given, "--output", "out/ext.model"]) == 0
    shown = capsys.readouterr()
    assert "300 pieces written to out/ext.model" in shown.err
    assert "in 400 lines" in shown.out  # each text once, although pairs repeat it
    assert load_tokenizer("out/ext.model").pieces == 300
    assert len((desk / "out/ext.vocab").read_text(encoding="utf-8").splitlines()) == 300
    assert main(["tokenizer", "extend", *given, "--output", "out/again.model"]) == 0
    assert (desk / "out/again.model").read_bytes() == (desk / "out/ext.model").read_bytes()
    capsys.readouterr()
    check = ["tokenizer", "check", "out/ext.model", "--base", "bpe.model", "--text", "more.txt", "--json"]
    assert main(check) == 0
    assert {finding["level"] for finding in json.loads(capsys.readouterr().out)} == {"ok"}


def test_an_output_that_exists_is_kept(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "ext.model").write_bytes(b"precious")
    given = ["tokenizer", "extend", "more.txt", "--base", "bpe.model", "--pieces", "200", "--output", "ext.model"]
    assert main(given) == 78
    assert "--force" in capsys.readouterr().err
    assert (desk / "ext.model").read_bytes() == b"precious"
    assert main([*given, "--force"]) == 0
    assert load_tokenizer("ext.model").pieces == 200


def test_an_unsound_tokenizer_is_an_error(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["tokenizer", "extend", "more.txt", "--base", "bpe.model", "--pieces", "200", "--output", "ext.model"]
    assert main(given) == 0
    assert main(["tokenizer", "check", "bpe.model", "--base", "ext.model"]) == 65
    assert "differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": 1}', "no target_text or text"),
        ("[]", "no target_text or text"),
        ("", "no text in pairs.jsonl"),
    ],
)
def test_a_manifest_without_text_is_named(
    desk: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (desk / "pairs.jsonl").write_text(content, encoding="utf-8")
    assert main(["tokenizer", "extend", "pairs.jsonl", "--base", "bpe.model", "--output", "ext.model"]) == 65
    assert words in capsys.readouterr().err


@pytest.fixture
def ranks_desk(desk: Path) -> Path:
    (desk / "base.tiktoken").write_bytes(small_ranks())
    (desk / "base.txt").write_text("\n".join(BASE_TEXTS), encoding="utf-8")
    return desk


def test_a_file_of_ranks_is_extended_checked_and_described(
    ranks_desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_tokenizer("base.tiktoken")
    given = ["pairs.jsonl::am", "more.txt", "--language", "am", "--base", "base.tiktoken", "--base-text", "base.txt"]
    given += ["--pieces", str(base.pieces + 100)]
    assert main(["tokenizer", "extend", *given, "--output", "out/ext.tiktoken"]) == 0
    shown = capsys.readouterr()
    assert f"{base.pieces + 100} pieces written to out/ext.tiktoken" in shown.err
    assert "1673 in the base's order, with ids that are 100 higher" in shown.out
    assert "have to be encoded again" in shown.out
    assert "in 400 lines" in shown.out
    assert [path.name for path in (ranks_desk / "out").iterdir()] == ["ext.tiktoken"]
    assert load_tokenizer("out/ext.tiktoken").pieces == base.pieces + 100
    check = ["tokenizer", "check", "out/ext.tiktoken", "--base", "base.tiktoken", "--text", "more.txt::am", "--json"]
    assert main(check) == 0
    assert {finding["level"] for finding in json.loads(capsys.readouterr().out)} == {"ok"}


def test_a_record_names_its_own_language(ranks_desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"text": "The Cat", "lang": "en"}, {"text": "The Cat", "lang": "az", "lang_alias": "tt"}]
    (ranks_desk / "mixed.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    check = ["tokenizer", "check", "base.tiktoken", "--base", "base.tiktoken", "--text", "mixed.jsonl", "--base-text"]
    assert main([*check, "mixed.jsonl"]) == 0
    assert "9 of 9 lines encode" in capsys.readouterr().out  # English in lower case, Azerbaijani as it stands
    records[0]["lang"] = "yue"
    (ranks_desk / "mixed.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    assert main([*check, "mixed.jsonl"]) == 78
    assert "'yue' has no token" in capsys.readouterr().err


def test_the_base_alone_says_whether_an_extension_is_worth_it(
    ranks_desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenizer", "check", "base.tiktoken", "--base", "base.tiktoken", "--text", "more.txt::am"]) == 0
    shown = capsys.readouterr().out
    assert "tokens per character with the base" in shown
    assert "longer than the 120 tokens that inference speaks at a time" in shown


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["check", "bpe.model", "--base", "base.tiktoken"], "neither extends the other"),
        (["check", "base.tiktoken", "--base", "bpe.model"], "neither extends the other"),
        (["extend", "more.txt::am", "--base", "base.tiktoken", "--output", "ext.model"], "name it .tiktoken"),
        (["extend", "more.txt::am", "--base", "bpe.model", "--output", "ext.tiktoken"], "name it .model"),
        (["extend", "more.txt::xx", "--base", "base.tiktoken", "--output", "e.tiktoken"], "'xx' is no language"),
        (["extend", "base.txt::tr", "--base", "base.tiktoken", "--output", "e.tiktoken"], "has a token in the base"),
        (["extend", "more.txt::am", "--base", "base.tiktoken", "--output", "e.tiktoken"], "ask for at most"),
    ],
)
def test_what_does_not_fit_together_is_one_clear_message(
    ranks_desk: Path, capsys: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    assert main(["tokenizer", *given]) in (65, 78)
    shown = capsys.readouterr()
    assert words in " ".join(shown.err.split())
    assert not list(ranks_desk.glob("e*.tiktoken"))
