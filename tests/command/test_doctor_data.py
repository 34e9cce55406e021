"""`doctor data` on a sound dataset, and on one for every fault that datasets have: each is found and named."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.doctor import survey
from indextts_job.tokenizer.extend import extend
from indextts_job.tokenizer.normalize import normalize
from tests.support.amharic import sentences
from tests.support.datasets import MadeDataset, make_dataset

RECORD = 6
"""Line, from 0, that single faults strike."""


@dataclass(frozen=True, slots=True)
class Desk:
    """A dataset to spoil, and how it is looked at."""

    folder: Path
    data: MadeDataset
    tokenizer: Path
    config: Path

    def records(self, manifest: Path | None = None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (manifest or self.data.train).read_text(encoding="utf-8").splitlines()]

    def write(self, records: list[dict[str, Any]], manifest: Path | None = None) -> None:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (manifest or self.data.train).write_text(text, encoding="utf-8")

    def command(self, *more: str) -> list[str]:
        sets = [str(self.data.train), "--validation", str(self.data.validation)]
        return ["doctor", "data", *sets, "--tokenizer", str(self.tokenizer), "--config", str(self.config), *more]


@pytest.fixture(scope="module")
def sound(world: World, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("sound")
    text = [normalize(sentence, "am") for sentence in sentences(500)]
    tokenizer = folder / "extended.model"
    tokenizer.write_bytes(extend(world.base_tokenizer.read_bytes(), text, 300).content)
    data = make_dataset(folder / "data", 400, tokenizer.read_bytes(), sentences(500))
    return Desk(folder, data, tokenizer, world.model_config)


@pytest.fixture
def desk(sound: Desk, tmp_path: Path) -> Desk:
    # Hard links: spoiling an array replaces its file.
    shutil.copytree(sound.folder / "data", tmp_path / "data", copy_function=os.link)
    data = MadeDataset(tmp_path / "data/train.jsonl", tmp_path / "data/validation.jsonl")
    for manifest in (data.train, data.validation):
        content = manifest.read_bytes()
        manifest.unlink()
        manifest.write_bytes(content)
    return Desk(tmp_path, data, sound.tokenizer, sound.config)


def findings(desk: Desk, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and all that is not well by subject."""
    code = main(desk.command("--json"))
    found = json.loads(capsys.readouterr().out)
    return code, {finding["subject"]: finding for finding in found if finding["level"] != "ok"}


def test_a_sound_dataset_raises_no_alarm(sound: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(sound, capsys) == (0, {})
    assert main(sound.command()) == 0
    shown = capsys.readouterr().out
    assert "400 pairs of 200 utterances (am 400)" in shown
    assert "█" in shown


def array(desk: Desk, key: str, change: Callable[[Any], Any]) -> None:
    path = desk.data.train.parent / desk.records()[RECORD][key]
    values = np.load(path)
    path.unlink()
    np.save(path, change(values))


def fields(desk: Desk, **changes: object) -> None:
    records = desk.records()
    records[RECORD] |= changes
    desk.write(records)


def spoil_array(key: str, change: Callable[[Any], Any]) -> Callable[[Desk], None]:
    return lambda desk: array(desk, key, change)


def spoil_fields(**changes: object) -> Callable[[Desk], None]:
    return lambda desk: fields(desk, **changes)


def remove(desk: Desk) -> None:
    (desk.data.train.parent / desk.records()[RECORD]["target_codes_path"]).unlink()


def empty(desk: Desk) -> None:
    path = desk.data.train.parent / desk.records()[RECORD]["prompt_emo_vec_path"]
    path.unlink()
    path.write_bytes(b"")


def text_of(desk: Desk, ids: Callable[[Any], Any]) -> None:
    array(desk, "target_text_ids_path", ids)
    records = desk.records()
    path = desk.data.train.parent / records[RECORD]["target_text_ids_path"]
    for record in records:
        if record["target_id"] == records[RECORD]["target_id"]:
            record["target_text_len"] = len(np.load(path))
    desk.write(records)


def codes_of(desk: Desk, codes: Callable[[Any], Any]) -> None:
    array(desk, "target_codes_path", codes)
    records = desk.records()
    path = desk.data.train.parent / records[RECORD]["target_codes_path"]
    for record in records:
        if record["target_id"] == records[RECORD]["target_id"]:
            record["target_code_len"] = len(np.load(path))
    desk.write(records)


TEXT, CODES, CONDITION, EMOTION = (
    "target_text_ids_path",
    "target_codes_path",
    "prompt_condition_path",
    "prompt_emo_vec_path",
)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove, "file not found"),
        (empty, "empty file"),
        (spoil_array(TEXT, lambda a: a.astype(np.float32)), "dtype float32, expected integers"),
        (spoil_array(CODES, lambda a: a[None]), "expected [n]"),
        (spoil_array(CONDITION, lambda a: a[:31]), "shape [31, 32], expected [32, 32]"),
        (spoil_array(EMOTION, lambda a: a[:-1]), "shape [31], expected [32]"),
        (spoil_array(CONDITION, lambda a: a * np.float32(np.nan)), "NaN or infinity"),
        (spoil_array(CODES, lambda a: a + 128), "code"),
        (spoil_array(TEXT, lambda a: a + 300), "out of range, expected 0 … 299"),
        (spoil_fields(target_text_len=3), "the manifest says 3"),
        (lambda desk: text_of(desk, lambda a: np.resize(a, 121)), "the model's limit is 120"),
        (lambda desk: codes_of(desk, lambda a: np.resize(a, 401)), "the model's limit is 400"),
    ],
)
def test_what_training_would_refuse_is_an_error_with_its_place(
    desk: Desk, capsys: pytest.CaptureFixture[str], spoil: Callable[[Desk], None], words: str
) -> None:
    spoil(desk)
    code, found = findings(desk, capsys)
    assert code == 65
    assert set(found) == {"arrays"}
    line = f"{desk.data.train}:{RECORD + 1} (id {desk.records()[RECORD]['id']}): "
    assert any(detail.startswith(line) and words in detail for detail in found["arrays"]["details"])


def change_all(desk: Desk, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    desk.write([record | change(number, record) for number, record in enumerate(desk.records())])


def repeated(desk: Desk) -> None:
    records = desk.records()
    desk.write([*records, records[RECORD]])


def copied_utterance(desk: Desk) -> None:
    records = desk.records()
    other = {**records[RECORD], "id": "copy__t", "target_id": "copy"}
    desk.write([*records, other])


def leaked(desk: Desk) -> None:
    validation = desk.records(desk.data.validation)
    desk.write([*validation, desk.records()[RECORD]], desk.data.validation)


def padded_batches(desk: Desk) -> None:
    """As a preprocessing leaves them that stores the padded rows of batches of eight."""
    records = desk.records()
    longest: dict[int, int] = {}
    for record in records:
        batch = int(record["target_id"][1:]) // 8
        longest[batch] = max(longest.get(batch, 0), record["target_code_len"])
    done = set()
    for record in records:
        length = longest[int(record["target_id"][1:]) // 8]
        if record["target_id"] not in done:
            done.add(record["target_id"])
            path = desk.data.train.parent / record["target_codes_path"]
            codes = np.resize(np.load(path), length)
            path.unlink()
            np.save(path, codes)
        record["target_code_len"] = length
    desk.write(records)


def padded_without_durations(desk: Desk) -> None:
    padded_batches(desk)
    for manifest in (desk.data.train, desk.data.validation):
        records = desk.records(manifest)
        for record in records:
            del record["target_duration"]
        desk.write(records, manifest)


def backwards(number: int, record: dict[str, Any]) -> dict[str, Any]:
    return {"target_text": record["target_text"][::-1]} if number % 9 else {}


def half_a_second(desk: Desk) -> None:
    records = desk.records()
    for record in records:
        path = desk.data.train.parent / record["target_codes_path"]
        codes = np.load(path)[:25]
        path.unlink()
        np.save(path, codes)
        record |= {"target_code_len": 25, "target_duration": 0.51}
    desk.write(records)


def one_voice(desk: Desk) -> None:
    change_all(desk, lambda number, _record: {"speaker": "loud"} if number < 200 else {})


def wrong_text(desk: Desk) -> None:
    """A sentence of a few seconds under the text of a single word, as when two clips are swapped."""
    text_of(desk, lambda a: a[:1])


@pytest.mark.parametrize(
    ("subject", "spoil"),
    [
        ("text ids", lambda desk: text_of(desk, lambda a: np.append(a, 1).astype(np.int32))),
        ("unknown ids", lambda desk: text_of(desk, lambda _a: np.full(110, 2, np.int32))),
        ("tokenizer", lambda desk: change_all(desk, backwards)),
        ("script", lambda desk: change_all(desk, lambda n, _r: {"target_text": "hello"} if n % 2 else {})),
        ("code tails", padded_batches),
        ("code tails", padded_without_durations),
        ("short codes", lambda desk: codes_of(desk, lambda a: a[: len(a) // 2])),
        ("speaking rate", wrong_text),
        ("duplicate ids", repeated),
        ("duplicates", copied_utterance),
        ("prompt is target", spoil_fields(prompt_id="t000003")),
        ("two speakers", spoil_fields(prompt_speaker="a", target_speaker="b")),
        (
            "two speakers",
            spoil_fields(speaker="", prompt_audio_path="x/JA_ann_1.wav", target_audio_path="x/bob_2.wav"),
        ),
        ("leakage", leaked),
        ("speakers", one_voice),
        ("speakers", spoil_fields(target_language="en", target_text="")),
        ("utterances", half_a_second),
    ],
)
def test_what_had_better_not_be_learned_is_a_warning_with_its_place(
    desk: Desk, capsys: pytest.CaptureFixture[str], subject: str, spoil: Callable[[Desk], None]
) -> None:
    spoil(desk)
    code, found = findings(desk, capsys)
    assert code == 0
    assert subject in found
    details = found[subject]["details"]
    assert details or subject == "utterances"
    if subject not in ("speakers", "leakage"):
        assert all(detail.startswith(f"{desk.data.train}:") and "(id " in detail for detail in details)


def test_texts_beyond_what_inference_reads_are_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    config = desk.folder / "config.yaml"
    config.write_text(desk.config.read_text(encoding="utf-8").replace("max_text_tokens: 120", "max_text_tokens: 600"))
    text_of(desk, lambda a: np.resize(a, 121))
    code, found = findings(replace(desk, config=config), capsys)
    assert code == 0
    assert found["long texts"]["details"][0].endswith("121 tokens")


def test_many_arrays_are_looked_at_by_several_processes(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MANY", 100)
    remove(desk)
    code, found = findings(desk, capsys)
    assert code == 65
    assert any("file not found" in detail for detail in found["arrays"]["details"])


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("", 65, "no pairs"),
        ("{oops\n", 65, "1 lines are no records"),
        ('{"id": "a", "condition_path": "x.npy"}\n', 65, "1 lines are single utterances"),
    ],
)
def test_a_manifest_that_is_none(
    desk: Desk, capsys: pytest.CaptureFixture[str], content: str, code: int, words: str
) -> None:
    for manifest in (desk.data.train, desk.data.validation):
        manifest.write_text(content, encoding="utf-8")
    assert main(desk.command()) == code
    assert words in capsys.readouterr().out.replace("2 lines", "1 lines")


def test_a_manifest_that_is_not_there(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.data.train.unlink()
    assert main(desk.command()) == 65
    assert "manifest not found" in capsys.readouterr().err


def repaired(desk: Desk, output: Path | str) -> list[str]:
    return desk.command("--repair", "drop-tails", "--output", str(output), "--json")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_padded_tails_are_cut_into_a_new_dataset_and_the_old_one_stays(
    desk: Desk, sound: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    padded_batches(desk)
    before = everything(desk.data.train.parent)
    output = desk.folder / "elsewhere" / "cut"
    assert main(repaired(desk, output)) == 0
    (told,) = [finding for finding in json.loads(capsys.readouterr().out) if finding["subject"] == "repair"]
    assert everything(desk.data.train.parent) == before
    cut = replace(desk, data=MadeDataset(output / "train.jsonl", output / "validation.jsonl"))
    assert findings(cut, capsys) == (0, {})
    # What was padded is what it was before; what was not is named where it lies.
    was = {record["id"]: record for record in sound.records()}
    for record in cut.records():
        codes = np.load(output / record["target_codes_path"])
        original = sound.data.train.parent / was[record["id"]]["target_codes_path"]
        assert np.array_equal(codes, np.load(original))
        assert record["target_code_len"] == len(codes)
        assert record["target_text"] == was[record["id"]]["target_text"]
    written = len(list((output / "codes").iterdir()))
    assert told["found"].startswith(f"drop-tails: {written} arrays changed; ")
    assert len(told["details"]) == written < len(list((desk.data.train.parent / "codes").iterdir()))
    assert sorted(path.name for path in output.iterdir()) == ["codes", "train.jsonl", "validation.jsonl"]


def test_without_padded_tails_nothing_is_written(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(repaired(desk, desk.folder / "cut")) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (desk.folder / "cut").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--repair", "drop-tails"], "belong together"),
        (["--output", "x"], "belong together"),
        (["--repair", "drop-tails", "--output", "memory://cut/a"], "is on another disk or in another bucket than"),
        (["--repair", "drop-tails", "--output", "."], "is not empty"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    padded_batches(desk)
    monkeypatch.chdir(desk.data.train.parent)
    assert main(desk.command(*more)) == 78
    assert words in capsys.readouterr().err


def test_a_manifest_with_lines_that_are_no_pairs_is_not_repaired(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    padded_batches(desk)
    with desk.data.train.open("a", encoding="utf-8") as file:
        file.write("{oops\n")
    assert main(repaired(desk, desk.folder / "cut")) == 65
    assert "lines that are no pairs" in capsys.readouterr().err
    assert not (desk.folder / "cut").exists()


def test_a_remote_dataset_is_repaired_in_its_own_bucket(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    import fsspec

    padded_batches(desk)
    folder = desk.data.train.parent
    for name, content in everything(folder).items():
        fsspec.filesystem("memory").pipe_file(f"/tails/data/{name}", content)
    arguments = ["--tokenizer", str(desk.tokenizer), "--config", str(desk.config)]
    command = ["doctor", "data", "memory://tails/data/train.jsonl", *arguments]
    assert main([*command, "--repair", "drop-tails", "--output", "memory://tails/cut"]) == 0
    assert "code tails" in capsys.readouterr().out
    assert main(["doctor", "data", "memory://tails/cut/train.jsonl", *arguments, "--json"]) == 0
    assert {found["level"] for found in json.loads(capsys.readouterr().out)} == {"ok"}
