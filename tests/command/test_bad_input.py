"""Each wrong input is one clear message with file and line or key, the right exit code, and nothing written."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.tokenizer.extend import parse_model
from tests.support.runs import config_for, newest


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """The command installs its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Place:
    """A copy of the dataset that a test may spoil, and a run folder."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.data = folder / "processed"
        shutil.copytree(world.train_manifest.parent, self.data)
        self.train_manifest = self.data / world.train_manifest.name
        self.run = folder / "run"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.train_manifest.read_text(encoding="utf-8").splitlines()]

    def write_records(self, records: list[dict[str, Any]]) -> None:
        self.train_manifest.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    def array(self, kind: str) -> Path:
        """An array that only record 5 (line 6) uses."""
        key = {"text_ids": "target_text_ids_path", "codes": "target_codes_path"}.get(kind, "")
        if kind in ("condition", "emo_vec"):
            key = {"condition": "prompt_condition_path", "emo_vec": "prompt_emo_vec_path"}[kind]
        return self.data / str(self.records()[5][key])

    def arguments(self, *more: str) -> list[str]:
        config = config_for(self.world, self.run, data__train_manifests=[str(self.train_manifest)])
        path = self.run.with_name("run.yaml")
        path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")
        return ["train", str(path), "schedule.max_steps=2", *more]


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    return Place(world, tmp_path)


Spoil = Callable[[Place], object]


def folder_instead(place: Place) -> None:
    place.array("codes").unlink()
    place.array("codes").mkdir()


def pipe_instead(place: Place) -> None:
    place.array("codes").unlink()
    os.mkfifo(place.array("codes"))


def sparse_instead(place: Place) -> None:
    with place.array("codes").open("wb") as file:
        file.truncate(2**40)


def spoil_array(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoil(place: Place) -> None:
        path = place.array(kind)
        np.save(path, change(np.load(path)))

    return spoil


def truncate(kind: str) -> Spoil:
    def spoil(place: Place) -> None:
        path = place.array(kind)
        path.write_bytes(path.read_bytes()[:-3])

    return spoil


def remove(kind: str) -> Spoil:
    return lambda place: place.array(kind).unlink()


def change_record(**fields: object) -> Spoil:
    def spoil(place: Place) -> None:
        records = place.records()
        records[5].update(fields)
        place.write_records(records)

    return spoil


def longer_than_the_model(kind: str, length: int, key: str) -> Spoil:
    def spoil(place: Place) -> None:
        spoil_array(kind, lambda _: np.full(length, 5, dtype=np.int32))(place)
        change_record(**{key: length})(place)

    return spoil


BAD_SAMPLES: dict[str, tuple[Spoil, list[str]]] = {
    "missing codes": (remove("codes"), [":6", "codes/", "file not found"]),
    "missing condition": (remove("condition"), ["condition/", "file not found"]),
    "truncated condition": (truncate("condition"), ["truncated"]),
    "truncated text": (truncate("text_ids"), [":6", "truncated"]),
    "wrong dtype of codes": (spoil_array("codes", lambda a: a.astype(np.float32)), ["dtype float32", "integers"]),
    "wrong dtype of emotion": (spoil_array("emo_vec", lambda a: a.astype(np.int32)), ["dtype int32", "float32"]),
    "wrong shape of condition": (spoil_array("condition", lambda a: a[:31]), ["shape [31, 32], expected [32, 32]"]),
    "wrong shape of emotion": (spoil_array("emo_vec", lambda a: a[None]), ["shape [1, 32], expected [32]"]),
    "wrong rank of text": (spoil_array("text_ids", lambda a: a[None]), ["expected [n]"]),
    "empty codes": (spoil_array("codes", lambda a: a[:0]), ["expected [n] with n of at least 1"]),
    "NaN in condition": (spoil_array("condition", lambda a: a * np.float32(np.nan)), ["NaN or infinity"]),
    "infinity in emotion": (spoil_array("emo_vec", lambda a: a + np.float32(np.inf)), ["NaN or infinity"]),
    "code out of range": (spoil_array("codes", lambda a: a + 128), ["code", "out of range, expected 0 … 127"]),
    "negative code": (spoil_array("codes", lambda a: a * 0 - 1), ["code -1 at position 0 out of range"]),
    "text id out of range": (spoil_array("text_ids", lambda a: a + 1000), ["text id", "expected 0 … 216"]),
    "lengths that disagree": (change_record(target_code_len=3), [":6", "values, the manifest says 3"]),
    "too many codes": (
        longer_than_the_model("codes", 401, "target_code_len"),
        ["401 values, the model's limit is 400"],
    ),
    "too much text": (longer_than_the_model("text_ids", 121, "target_text_len"), ["the model's limit is 120"]),
    "not an array": (lambda place: place.array("codes").write_bytes(b"hello"), ["not a .npy file"]),
    "a folder": (folder_instead, ["not found"]),
    "a pipe": (pipe_instead, ["is a pipe, expected a regular file"]),
    "a sparse terabyte": (sparse_instead, ["1099511627776 bytes, expected at most"]),
    "a chain of file systems": (
        change_record(target_codes_path="reference://a::s3://bucket/b"),
        [":6", "target_codes_path", "leads away from where its manifest lies"],
    ),
    "another bucket": (change_record(target_codes_path="s3://bucket/a.npy"), [":6", "leads away"]),
    "a path of Windows": (
        change_record(target_codes_path="codes\\a.npy"),
        [":6", "has backslashes", "/codes/a.npy"],
    ),
    "a path of another machine": (change_record(target_codes_path="/home/ann/a.npy"), ["no /home/ann on this machine"]),
    "a path that is too long": (change_record(target_codes_path="x" * 300), ["No such path can exist"]),
    "a text with a NUL": (change_record(target_codes_path="a\0b"), [":6", "NUL"]),
    "half a character in an id": (change_record(id="half \ud800"), [":6", "half a character"]),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_stops_the_run_before_it_begins(
    place: Place, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, words = BAD_SAMPLES[case]
    spoil(place)
    assert main(place.arguments()) == 65
    message = capsys.readouterr().err
    for word in [*words, str(place.train_manifest)]:
        assert word in message
    assert ("bad samples" in message and "--skip-bad-samples" in message) or "malformed records" in message
    assert "Traceback" not in message
    assert not place.run.exists()


@pytest.mark.parametrize("case", ["missing codes", "NaN in condition", "code out of range"])
def test_bad_samples_are_skipped_on_request_and_never_silently(
    place: Place, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    assert main(place.arguments("run=" + str(place.run) + "-whole")) == 0
    BAD_SAMPLES[case][0](place)
    capsys.readouterr()
    assert main(place.arguments("--skip-bad-samples")) == 0
    output = capsys.readouterr().out
    assert "skipped bad sample" in output
    assert "39 samples to train" in output
    spoiled, whole = newest(place.run).values, newest(str(place.run) + "-whole").values
    assert len(spoiled.dataset.skipped_samples) == 1
    assert spoiled.order.dataset_fingerprint != whole.order.dataset_fingerprint


def test_all_bad_samples_are_named_at_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((place.data / "codes").glob("utt*"))[:30]:
        path.unlink()
    assert main(place.arguments()) == 65
    message = capsys.readouterr().err
    assert "30 bad samples" in message
    assert "… and 10 more" in message


def test_paths_relative_to_the_working_directory_are_recognised(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.data.parent)
    records = place.records()
    for record in records:
        record.update({key: f"processed/{value}" for key, value in record.items() if key.endswith("_path")})
    place.write_records(records)
    assert main(place.arguments()) == 65
    assert "exists below the working directory" in capsys.readouterr().err


def manifest_as_folder(place: Place) -> None:
    place.train_manifest.unlink()
    place.train_manifest.mkdir()


def wrong_manifest(text: str) -> Spoil:
    return lambda place: place.train_manifest.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: place.train_manifest.unlink(), ["manifest not found", "gpt_pairs_train.jsonl"]),
        (manifest_as_folder, ["is a folder, and no sharded dataset"]),
        (wrong_manifest('{"id": \n'), [":1", "not JSON"]),
        (wrong_manifest('{"id": "a", "condition_path": "c.npy"}\n'), ["single records", "pairing tool"]),
        (wrong_manifest("\n"), ["no records"]),
        (lambda place: place.train_manifest.write_bytes(b"\xff\xfe\x00"), ["UTF-16", "not UTF-8"]),
        (wrong_manifest("[" * 100_000 + "\n"), [":1", "not JSON"]),
        (wrong_manifest('{"id": ' + "9" * 5000 + "}\n"), [":1", "not JSON"]),
    ],
)
def test_a_bad_manifest_is_explained(
    place: Place, capsys: pytest.CaptureFixture[str], spoil: Spoil, words: list[str]
) -> None:
    arguments = place.arguments()
    spoil(place)
    assert main(arguments) == 65
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not place.run.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["schedule.max_stepz=3"], ["unknown key schedule.max_stepz", "schedule.max_steps"]),
        (["recipe.dropout=2"], ["recipe.dropout is 2"]),
        (["inputs.tokenizer=no.model"], ["tokenizer not found: no.model", "inputs.tokenizer"]),
        (["inputs.model_config=no.yaml"], ["inputs.model_config"]),
        (["inputs.base_checkpoint=no.pth"], ["base checkpoint not found"]),
        (["--config", "run.yaml"], ["run.yaml"]),
        (["hardware.device=cuda"], ["no GPU here"]),
        (["hardware.capacity_tokens=50"], ["the longest sample has"]),
        (["run=/proc/no/such/run"], ["/proc/no", "choose another"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["second.yaml"], ["2 configuration files"]),
        (["run=gopher://x/y"], ["gopher"]),
        (["a.b"], ["2 configuration files", "Settings are key=value"]),
        (["inputs.model_config=/usr"], ["/usr is a folder", "expected a file"]),
        (["data/lang=am/run.yaml"], ["2 configuration files"]),
        (["run="], ["run is None", "a text"]),
        (["run=''"], ["run is empty"]),
        (["run=s3://"], ["names no bucket"]),
        (["run=simplecache::s3://bucket/run"], ["chains several file systems"]),
        (["run=https://host/run"], ["a web server keeps no runs"]),
        (["run=~nosuchuser/run"], ["~nosuchuser"]),
        (["run=" + "x" * 300], ["No such path can exist"]),
        (["report.run_name=../../x"], ["report.run_name"]),
        (["--learning-rate", "inf"], ["schedule.learning_rate is inf", "finite"]),
        (["--learning-rate", "nan"], ["schedule.learning_rate is nan", "finite"]),
        (["--epochs", "9" * 5000], ["--epochs"]),
        (["--seed", "1" * 100], ["recipe.seed"]),
        (["schedule.learning_rate=.inf"], ["schedule.learning_rate", "finite"]),
        (["schedule.max_steps=" + "9" * 5000], ["schedule.max_steps", "5000 characters"]),
        (["schedule.max_steps=1:0"], ["schedule.max_steps is '1:0'", "a whole number"]),
        (["schedule.max_steps=1_000"], ["schedule.max_steps is '1_000'"]),
        (["data.skip_bad_samples=yes"], ["data.skip_bad_samples is 'yes'", "true or false"]),
        (["hardware.threads=1000000000000000000"], ["hardware.threads", "at most 4096"]),
        (["resume.accept=" + "[" * 5000], ["resume.accept", "levels of nesting"]),
        (["resume.accept=&a [*a]"], ["resume.accept", "alias"]),
        (["storage.endpoint_url=nonsense"], ["storage.endpoint_url is 'nonsense'"]),
        (["storage.log_interval_seconds=0"], ["storage.log_interval_seconds is 0"]),
        (["inputs.tokenizer=/dev/zero"], ["is a device"]),
        (["inputs.tokenizer=zip://a::b"], ["chains several file systems"]),
        (["inputs.model_config=/dev/zero"], ["is a device"]),
        (["inputs.model_config=~nosuchuser/config.yaml"], ["~nosuchuser"]),
        (["inputs.base_checkpoint=" + "x" * 300], ["No such path can exist"]),
        (["inputs.base_checkpoint=none/checkpoints/x.json"], ["base checkpoint not found"]),
    ],
)
def test_a_wrong_setting_is_named(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    code = main(place.arguments(*arguments))
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert code == (65 if "is a device" in words and "tokenizer" in arguments[0] else 78)
    assert not place.run.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schedule: {epochs: 1}\nrun: a\nschedule: {epochs: 2}\n", ["schedule", "line 1", "line 3"]),
        ("recipe:\n  seed: 1\n  seed: 2\n", ["recipe.seed", "line 2", "line 3"]),
        ("optimizer: {epsilon: .nan}\n", ["optimizer.epsilon is .nan", "finite"]),
        ("a: &a [1, 1]\nb: [*a, *a]\n", ["line 2", "alias"]),
        ("[" * 3000, ["levels of nesting"]),
        ("run: 2024-13-45\ndata: {}", ["data.train_manifests is empty"]),
        ("run: \0", ["not valid YAML"]),
        ('run: "half \\ud800"', ["half a character"]),
        ("recipe: {seed: " + "9" * 5000 + "}", ["recipe.seed", "5000 characters"]),
    ],
)
def test_a_wrong_configuration_file_is_named_with_line_or_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    path = tmp_path / "lang=am" / "run.yaml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    assert main(["train", str(path)]) == 78
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 0}, ["gpt.heads: found 0"]),
        ({"layers": 10**18}, ["gpt.layers"]),
        ({"note": "2024-02-31"}, []),
    ],
)
def test_a_wrong_model_configuration_is_named_by_key(
    place: Place, capsys: pytest.CaptureFixture[str], change: dict[str, object], words: list[str]
) -> None:
    document = yaml.safe_load(place.world.model_config.read_text(encoding="utf-8"))
    document["gpt"] |= change
    path = place.run.with_name("config.yaml")
    path.write_text(yaml.safe_dump(document).replace("'2024-02-31'", "2024-02-31"), encoding="utf-8")
    assert main(place.arguments(f"inputs.model_config={path}")) == (78 if words else 0)
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert place.run.exists() is not bool(words)


def test_a_tokenizer_smaller_than_the_base_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    small = place.run.with_name("small.model")
    model = parse_model(place.world.base_tokenizer.read_bytes(), "base")
    del model.pieces[90:]
    small.write_bytes(model.SerializeToString())
    assert main(place.arguments(f"inputs.tokenizer={small}")) == 78
    message = capsys.readouterr().err
    assert "pieces, the base checkpoint knows 100" in message
    assert not place.run.exists()


def test_a_file_that_is_no_tokenizer_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(place.arguments(f"inputs.tokenizer={place.world.model_config}")) == 65
    assert "not a SentencePiece model" in capsys.readouterr().err


def test_a_run_folder_that_is_a_file_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.run.write_text("precious")
    assert main(place.arguments()) == 78
    assert "is a file, expected a folder" in capsys.readouterr().err
    assert place.run.read_text() == "precious"


def test_a_model_configuration_given_as_the_run_is_recognised(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(place.world.model_config)]) == 78
    assert "Give it with --config" in capsys.readouterr().err


def test_a_vector_that_changes_under_the_run_is_an_error(place: Place) -> None:
    from indextts_job.data.dataset import Limits
    from indextts_job.data.sources import load_dataset
    from indextts_job.errors import DataError, UnavailableError
    from indextts_job.model.config import gpt_config
    from indextts_job.storage.files import read_yaml

    model = gpt_config(read_yaml(str(place.world.model_config), "", ""), "")
    dataset = load_dataset([str(place.train_manifest)], Limits(model, 217), skip_bad_samples=False)
    assert dataset.sample(5).condition.shape == (32, 32)
    path = place.array("condition")
    np.save(path, np.load(path) + np.float32(1))
    with pytest.raises(DataError, match="changed since it was checked"):
        dataset.sample(5)
    path.unlink()
    with pytest.raises(UnavailableError, match="cannot be read now"):
        dataset.sample(5)


def test_separators_of_lines_inside_a_text_are_part_of_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    records = place.records()
    records[5] |= {"target_text": "one\u2028two\x85three", "note": "\x1e"}
    text = "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records)
    place.train_manifest.write_text(text, encoding="utf-8", newline="")
    assert main(place.arguments()) == 0, capsys.readouterr().err


def test_lengths_as_pandas_writes_them_are_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    records = place.records()
    for record in records:
        record["target_text_len"] = float(record["target_text_len"])
        record["target_code_len"] = str(record["target_code_len"])
    place.write_records(records)
    assert main(place.arguments()) == 0, capsys.readouterr().err


def test_an_empty_emotion_path_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    change_record(prompt_emo_vec_path="", target_emo_vec_path="")(place)
    assert main(place.arguments()) == 65
    assert "no emotion path" in capsys.readouterr().err
