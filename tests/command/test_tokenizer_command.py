"""`indextts-job tokenizer`: text in, a checked extension out, nothing written over."""

import json
from pathlib import Path

import pytest

from indextts_job.cli import main
from indextts_job.demo.world import base_tokenizer
from indextts_job.tokenizer.loading import load_tokenizer
from tests.support.amharic import sentences


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
