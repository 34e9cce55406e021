"""What `train` makes of a prepared dataset: the bits of `.npy` files through `shard`, with either emotion."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indextts_job.config import RunConfig, build_config
from indextts_job.data.containers import arrays_of, header_of, written
from indextts_job.data.dataset import USES
from indextts_job.data.manifest import DataConfig
from indextts_job.data.shard_index import MadeFor, parse_index
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.errors import DataError
from indextts_job.prepare.run import assemble, prepare, read_work_list
from indextts_job.tokenizer.limits import limits_of
from tests.prepare.outcomes import TRAIN, VALIDATION
from tests.support.attempts import attempt
from tests.support.runs import newest, state_of
from tests.support.voices import Voices

KEYS = {"text": "target_text_ids_path", "codes": "target_codes_path", "emotion": "prompt_emo_vec_path"}


@pytest.fixture(scope="module", params=["2.0", "2.5"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Voices, Path]:
    """Voices of a version, and their dataset."""
    voices: Voices = request.getfixturevalue("voices" if request.param == "2.0" else "voices_2_5")
    output = tmp_path_factory.mktemp("prepared")
    config = voices.config(output)
    prepare(config, read_work_list(config), "a", lambda: None, lambda _done, _all: None)
    return voices, output


def run_config(voices: Voices, run: Path, data: Path | str, **keys: object) -> RunConfig:
    settings: dict[str, Any] = {
        "run": str(run),
        "inputs.model_config": str(voices.world.model_config),
        "inputs.base_checkpoint": str(voices.world.base_checkpoint),
        "inputs.tokenizer": str(voices.world.tokenizer),
        "data.train_manifests": [str(data)],
        "recipe.global_batch_samples": 5,
        "schedule.learning_rate": 3e-3,
        "schedule.warmup_steps": 1,
        "schedule.max_steps": 4,
        "hardware.threads": 1,
    }
    return build_config(
        None, "test", [("test", settings), ("test", {k.replace("__", "."): v for k, v in keys.items()})]
    )


def as_files(voices: Voices, index: str, folder: Path, emotion: str) -> Path:
    """A dataset's arrays as `.npy` files with a manifest of pairs, as the public preprocessing lays them out."""
    work = read_work_list(voices.config("unused"))
    limits = limits_of(work.model, work.tokenizer, DataConfig(emotion=emotion))  # type: ignore[arg-type]
    dataset = load_dataset([index], limits, skip_bad_samples=False)
    folder.mkdir()
    condition = "prompt_speaker_path" if work.model.version.speaker_width else "prompt_condition_path"
    lines = []
    for place, sample in enumerate(dataset.samples(range(len(dataset)))):
        arrays = dict(zip(USES, (sample.text_ids, sample.codes, sample.condition, sample.emotion), strict=True))
        record: dict[str, object] = {"id": sample.id, "target_text_len": len(sample.text_ids), "language": "am"}
        record["target_code_len"] = len(sample.codes)
        for use, values in arrays.items():
            kind = np.int32 if use in ("text", "codes") else np.float32
            np.save(folder / f"{use}-{place}.npy", np.asarray(values, kind))
            record[{**KEYS, "condition": condition}[use]] = f"{use}-{place}.npy"
        lines.append(json.dumps({**record, "target_emo_vec_path": record["prompt_emo_vec_path"]}) + "\n")
    manifest = folder / "pairs.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    sharded = load_dataset([str(manifest)], limits, skip_bad_samples=False)
    write_shards(sharded, str(folder / "sharded"), lambda _done, _all: None, made_for=MadeFor.of(limits))
    return folder / "sharded"


@pytest.mark.parametrize("emotion", ["prompt", "target"])
def test_training_has_the_bits_of_files_through_shard(
    prepared: tuple[Voices, Path], tmp_path: Path, emotion: str
) -> None:
    voices, output = prepared
    index = f"{output}/{TRAIN}"
    files = as_files(voices, index, tmp_path / "files", emotion)
    keys = {"data__emotion": emotion}
    for name, data in (("prepared", index), ("files", files)):
        assert attempt(run_config(voices, tmp_path / name, data, **keys)).code == 0
    assert state_of(newest(tmp_path / "prepared")) == state_of(newest(tmp_path / "files"))


def test_emotions_are_those_of_the_utterance_that_is_asked_for(prepared: tuple[Voices, Path]) -> None:
    voices, output = prepared
    work = read_work_list(voices.config("unused"))
    found = {}
    for emotion in ("prompt", "target"):
        limits = limits_of(work.model, work.tokenizer, DataConfig(emotion=emotion))
        dataset = load_dataset([f"{output}/{TRAIN}"], limits, skip_bad_samples=False)
        found[emotion] = {sample.id: sample.emotion.tobytes() for sample in dataset.samples(range(len(dataset)))}
    for name, emotion_of_prompt in found["prompt"].items():
        target, _, prompt = name.partition("__")
        others = {pair: value for pair, value in found["target"].items() if pair.partition("__")[0] == prompt}
        assert all(value == emotion_of_prompt for value in others.values())
        assert found["target"][name] != emotion_of_prompt
        assert target != prompt
    assert any(
        pair.partition("__")[0] == name.partition("__")[2] for name in found["prompt"] for pair in found["target"]
    )


def test_validation_is_a_dataset_of_its_own(prepared: tuple[Voices, Path], tmp_path: Path) -> None:
    voices, output = prepared
    config = run_config(
        voices, tmp_path / "run", f"{output}/{TRAIN}", data__validation_manifests=[f"{output}/{VALIDATION}"]
    )
    done = attempt(config)
    assert done.code == 0
    assert "validation  step 4" in done.output


def test_encoders_of_another_checkpoint_are_refused(prepared: tuple[Voices, Path], tmp_path: Path, log: Path) -> None:
    voices, output = prepared
    tensors = torch.load(voices.world.base_checkpoint, weights_only=True)
    tensors["emo_layer.bias"] = tensors["emo_layer.bias"] + 1e-3
    torch.save(tensors, tmp_path / "gpt.pth")
    given = {"inputs__base_checkpoint": str(tmp_path / "gpt.pth")}
    done = attempt(run_config(voices, tmp_path / "run", f"{output}/{TRAIN}", **given))
    assert done.code == 65
    assert "prepared with the conditioning encoders of another checkpoint" in done.error
    # Other weights that train are another matter: an export of an earlier run is a base as well.
    tensors = torch.load(voices.world.base_checkpoint, weights_only=True)
    tensors["mel_head.bias"] = tensors["mel_head.bias"] + 1e-3
    torch.save(tensors, tmp_path / "gpt.pth")
    assert attempt(run_config(voices, tmp_path / "run", f"{output}/{TRAIN}", **given)).code == 0


def test_shards_that_do_not_say_pass_with_a_line(prepared: tuple[Voices, Path], tmp_path: Path) -> None:
    voices, output = prepared
    files = as_files(voices, f"{output}/{TRAIN}", tmp_path / "files", "prompt")
    done = attempt(run_config(voices, tmp_path / "run", files))
    assert done.code == 0
    assert "sharded data does not say which encoders made it" in done.output


def test_assembling_again_changes_no_byte(prepared: tuple[Voices, Path]) -> None:
    voices, output = prepared
    before = (output / TRAIN).read_bytes()
    config = voices.config(output)
    assemble(config, read_work_list(config), lambda: None)
    assert (output / TRAIN).read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prepared_by", 3),
        ("prepared_by", {"encoders": ["conditioning"]}),
        ("prepared_by", {"encoders": {"conditioning": "abc"}}),
        ("other_emotion", {"emotion": "target"}),
        ("other_emotion", {"emotion": "target", "fingerprint": 3}),
        ("other_emotion", {"emotion": 1, "fingerprint": "0" * 64}),
    ],
)
def test_an_index_that_lies_about_its_preparation_is_refused(
    prepared: tuple[Voices, Path], key: str, value: object
) -> None:
    content = (prepared[1] / TRAIN).read_bytes()
    header = header_of(content)
    arrays = arrays_of(content, header)
    with pytest.raises(DataError, match="damaged or not ours"):
        parse_index(written({**header, key: value}, arrays), TRAIN)
    beyond = {**arrays, "pair_other_emotion": arrays["pair_other_emotion"] + 10**6}
    with pytest.raises(DataError, match="damaged or not ours"):
        parse_index(written(header, beyond), TRAIN)


def test_an_index_of_other_emotions_has_the_fingerprint_of_its_own(prepared: tuple[Voices, Path]) -> None:
    index = parse_index((prepared[1] / TRAIN).read_bytes(), TRAIN)
    other = index.with_emotion("target")
    assert (index.made_for.emotion, other.made_for.emotion) == ("prompt", "target")
    assert other.fingerprint != index.fingerprint
    assert index.with_emotion("prompt") is index
    assert other.with_emotion("prompt") is other
