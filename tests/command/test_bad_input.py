"""Each wrong input is one clear message with file and line or key, the right exit code, and nothing written."""

import json
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
    "negative code": (spoil_array("codes", lambda a: a * 0 - 1), ["code -1 out of range"]),
    "text id out of range": (spoil_array("text_ids", lambda a: a + 1000), ["text id", "expected 0 … 216"]),
    "lengths that disagree": (change_record(target_code_len=3), [":6", "values, the manifest says 3"]),
    "too many codes": (
        longer_than_the_model("codes", 401, "target_code_len"),
        ["401 values, the model's limit is 400"],
    ),
    "too much text": (longer_than_the_model("text_ids", 121, "target_text_len"), ["the model's limit is 120"]),
    "not an array": (lambda place: place.array("codes").write_bytes(b"hello"), ["not a .npy file"]),
    "a folder": (folder_instead, ["not found"]),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_stops_the_run_before_it_begins(
    place: Place, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, words = BAD_SAMPLES[case]
    spoil(place)
    assert main(place.arguments()) == 65
    message = capsys.readouterr().err
    for word in [*words, "bad samples", "--skip-bad-samples", str(place.train_manifest)]:
        assert word in message
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
    assert len(spoiled["dataset"]["skipped_samples"]) == 1
    assert spoiled["order"]["dataset_fingerprint"] != whole["order"]["dataset_fingerprint"]


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


def wrong_manifest(text: str) -> Spoil:
    return lambda place: place.train_manifest.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: place.train_manifest.unlink(), ["manifest not found", "gpt_pairs_train.jsonl"]),
        (wrong_manifest('{"id": \n'), [":1", "not JSON"]),
        (wrong_manifest('{"id": "a", "condition_path": "c.npy"}\n'), ["single records", "pairing tool"]),
        (wrong_manifest("\n"), ["no records"]),
        (lambda place: place.train_manifest.write_bytes(b"\xff\xfe\x00"), ["not UTF-8"]),
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
        (["a.b"], ["2 configuration files"]),
    ],
)
def test_a_wrong_setting_is_named(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(place.arguments(*arguments)) == 78
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert not place.run.exists()


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
    from indextts_job.files import read_yaml
    from indextts_job.model.config import gpt_config

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
