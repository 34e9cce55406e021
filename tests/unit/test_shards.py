"""Sharded datasets: the same samples, the same bytes, resumable, and nothing damaged is accepted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from indextts_job.cli import main
from indextts_job.data.dataset import Dataset, Limits
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World
from indextts_job.errors import ConfigError, DataError, UnavailableError
from indextts_job.model.config import gpt_config
from indextts_job.storage.files import read_yaml
from tests.support.attempts import attempt
from tests.support.held_data import chosen
from tests.support.runs import config_for, newest, state_of

SMALL_SHARD = 3 * 32 * 32 * 4  # three conditions of the tiny world


@pytest.fixture(scope="module")
def limits(world: World) -> Limits:
    return Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)


@pytest.fixture(scope="module")
def dataset(world: World, limits: Limits) -> Dataset:
    return load_dataset([f"{world.train_manifest}::am"], limits, skip_bad_samples=False)


def nothing(_done: int, _total: int) -> None:
    return


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: Dataset, other: Dataset) -> bool:
    pairs = zip(one.samples(range(len(one))), other.samples(range(len(other))), strict=True)
    fields = ("id", "text_ids", "codes", "condition", "emotion")
    return all(np.array_equal(getattr(a, field), getattr(b, field)) for a, b in pairs for field in fields)


def test_a_sharded_dataset_holds_the_same_samples(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    assert write_shards(dataset, str(tmp_path), nothing, shard_bytes=SMALL_SHARD) == dataset.fingerprint
    sharded = load_dataset([str(tmp_path)], limits, skip_bad_samples=False)
    assert sharded.fingerprint == dataset.fingerprint
    assert sharded.languages == {"am": 40}
    assert len(list(tmp_path.glob("condition-*.safetensors"))) == 14
    assert same(sharded, dataset)


def test_the_same_input_gives_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shards(dataset, str(tmp_path / name), nothing, shard_bytes=SMALL_SHARD)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_vectors_that_several_pairs_use_are_stored_once(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    doubled = Dataset([*dataset.parts, *chosen(dataset, range(40), "-2").parts])
    write_shards(doubled, str(tmp_path / "doubled"), nothing)
    write_shards(dataset, str(tmp_path / "single"), nothing)
    name = "condition-00000.safetensors"
    assert (tmp_path / "doubled" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()
    assert len(load_dataset([str(tmp_path / "doubled")], limits, skip_bad_samples=False)) == 80


def test_an_interrupted_conversion_keeps_finished_shards(dataset: Dataset, tmp_path: Path) -> None:
    write_shards(dataset, str(tmp_path / "whole"), nothing, shard_bytes=SMALL_SHARD)
    folder = tmp_path / "part"

    class KilledError(Exception):
        pass

    def killed(done: int, _total: int) -> None:
        if done >= 9:
            raise KilledError

    with pytest.raises(KilledError):
        write_shards(dataset, str(folder), killed, shard_bytes=SMALL_SHARD)
    assert not (folder / "index.safetensors").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("condition-*.safetensors")}
    assert len(kept) == 3
    write_shards(dataset, str(folder), nothing, shard_bytes=SMALL_SHARD)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(folder) == contents(tmp_path / "whole")


def test_another_dataset_is_not_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="another sharded dataset"):
        write_shards(chosen(dataset, range(5)), str(tmp_path), nothing)
    assert contents(tmp_path) == before


def test_a_newer_shard_format_is_explained(
    dataset: Dataset, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indextts_job.data.sharding.FORMAT_VERSION", 7)
    write_shards(dataset, str(tmp_path), nothing)
    monkeypatch.undo()
    with pytest.raises(DataError, match="shard format 7, this release reads 2"):
        load_dataset([str(tmp_path)], limits, skip_bad_samples=False)


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "index.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda folder: (folder / "index.safetensors").unlink(), "not found"),
        (
            lambda folder: (folder / "index.safetensors").write_bytes(
                (folder / "index.safetensors")
                .read_bytes()
                .replace(b'\\"format_version\\": 2', b'\\"format_version\\": 7')
            ),
            "does not have the hash",
        ),
    ],
)
def test_a_damaged_index_is_refused(
    dataset: Dataset, limits: Limits, tmp_path: Path, damage: Damage, words: str
) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        load_dataset([f"{tmp_path}/index.safetensors"], limits, skip_bad_samples=False)


def test_no_flipped_bit_of_the_index_changes_a_sample(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    path = tmp_path / "index.safetensors"
    good = path.read_bytes()
    accepted = 0
    for position in range(0, len(good), 211):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            damaged = load_dataset([str(tmp_path)], limits, skip_bad_samples=False)
        except DataError:
            continue
        accepted += damaged.fingerprint != dataset.fingerprint or not same(damaged, dataset)
    assert accepted == 0


def test_a_damaged_or_missing_shard_is_noticed_when_it_is_read(
    dataset: Dataset, limits: Limits, tmp_path: Path
) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    sharded = load_dataset([str(tmp_path)], limits, skip_bad_samples=False)
    shard = tmp_path / "condition-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    bad = [index for index in range(40) if _fails(sharded, index, DataError)]
    assert len(bad) == 1
    shard.unlink()
    assert all(_fails(sharded, index, UnavailableError) for index in range(40))


def _fails(dataset: Dataset, index: int, kind: type[Exception]) -> bool:
    try:
        dataset.sample(index)
    except kind as error:
        assert "condition-00000.safetensors, row" in str(error)  # noqa: PT017  # of a helper
        return True
    return False


def test_a_dataset_for_another_model_or_tokenizer_is_refused(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    write_shards(dataset, str(tmp_path), nothing)
    wrong = [
        (replace(limits, text_pieces=150), "expected 0 … 149"),
        (replace(limits, model=replace(limits.model, max_mel_tokens=10)), "the model's limit is 10"),
        (replace(limits, model=replace(limits.model, start_mel_token=5)), "expected 0 … 4"),
        (replace(limits, model=replace(limits.model, model_dim=64)), "rows of shape [32, 32], expected [32, 64]"),
    ]
    for limit, words in wrong:
        with pytest.raises(DataError) as caught:
            load_dataset([str(tmp_path)], limit, skip_bad_samples=False)
        assert words in str(caught.value)


def test_training_on_shards_gives_the_same_bits_and_may_take_over_a_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tokenizer", str(world.tokenizer), "--config", str(world.model_config)]
    shards = tmp_path / "shards"
    assert main(["shard", f"{world.train_manifest}::am", "--output", str(shards), *arguments]) == 0
    assert "40 samples" in capsys.readouterr().out
    one, other = tmp_path / "one", tmp_path / "other"
    assert attempt(config_for(world, one)).code == 0
    assert attempt(config_for(world, other, schedule__max_steps=8)).code == 0
    ended = attempt(
        config_for(world, other, data__train_manifests=[str(shards)], resume__accept=["schedule.max_steps"])
    )
    assert ended.code == 0, ended.error
    assert newest(other).values.order == newest(one).values.order
    longer = {**state_of(newest(other)), "history": None}
    assert longer.keys() == state_of(newest(one)).keys()
    assert attempt(config_for(world, tmp_path / "sharded", data__train_manifests=[str(shards)])).code == 0
    assert state_of(newest(tmp_path / "sharded")) == state_of(newest(one))


def test_skipped_samples_are_named_in_the_index(world: World, limits: Limits, tmp_path: Path) -> None:
    lines = world.train_manifest.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.update(
            {key: str(world.train_manifest.parent / value) for key, value in record.items() if key.endswith("_path")}
        )
    records[3]["target_codes_path"] = "/no/such/file.npy"
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    dataset = load_dataset([str(manifest)], limits, skip_bad_samples=True)
    write_shards(dataset, str(tmp_path / "shards"), nothing)
    sharded = load_dataset([str(tmp_path / "shards")], limits, skip_bad_samples=False)
    assert [sample.id for sample in sharded.skipped] == [records[3]["id"]]
    assert sharded.fingerprint == dataset.fingerprint


def test_bfloat16_halves_the_bytes_and_rounds_as_torch_does(dataset: Dataset, limits: Limits, tmp_path: Path) -> None:
    exact, halved = tmp_path / "exact", tmp_path / "halved"
    write_shards(dataset, str(exact), nothing)
    fingerprint = write_shards(dataset, str(halved), nothing, dtype="bfloat16")
    sharded = load_dataset([str(halved)], limits, skip_bad_samples=False)
    assert sharded.fingerprint == fingerprint != dataset.fingerprint
    for index in range(40):
        one, other = dataset.sample(index), sharded.sample(index)
        assert np.array_equal(torch.tensor(one.condition).bfloat16().float().numpy(), other.condition)
        assert np.array_equal(torch.tensor(one.emotion).bfloat16().float().numpy(), other.emotion)
        assert np.array_equal(one.codes, other.codes)
    name = "condition-00000.safetensors"
    assert (halved / name).stat().st_size < 0.51 * (exact / name).stat().st_size
    stored = safetensors.torch.load_file(halved / name)["condition"]
    assert stored.dtype == torch.bfloat16
    assert write_shards(dataset, str(halved), nothing, dtype="bfloat16") == fingerprint
    with pytest.raises(ConfigError, match="another sharded dataset"):
        write_shards(dataset, str(halved), nothing)
