"""Manifests, arrays and indexes of sharded datasets."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.data.dataset import Limits
from indextts_job.data.manifest import parse_records
from indextts_job.data.manifest_source import parse_source
from indextts_job.data.npy import NpyFormatError, parse_npy
from indextts_job.data.shard_index import parse_index
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World
from indextts_job.doctor.data import examine_data
from indextts_job.doctor.findings import Finding
from indextts_job.doctor.survey import survey
from indextts_job.model.config import gpt_config
from indextts_job.storage import files
from indextts_job.storage.files import read_yaml
from indextts_job.tokenizer.corpus import read_corpus
from indextts_job.tokenizer.loading import load_tokenizer
from tests.fuzz.outcomes import taken_or_refused
from tests.fuzz.strategies import Damage, changed, damaged, damages, texts, values
from tests.support.held_data import chosen
from tests.support.shard_indexes import changed_index


@pytest.fixture(scope="module")
def limits(world: World) -> Limits:
    return Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)


@pytest.fixture(scope="module")
def records(world: World) -> list[dict[str, Any]]:
    folder = world.train_manifest.parent
    lines = world.train_manifest.read_text(encoding="utf-8").splitlines()[:2]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row |= {key: str(folder / value) for key, value in row.items() if key.endswith("_path")}
    return rows


@given(st.data(), st.sampled_from(("data/m.jsonl", "s3://bucket/data/m.jsonl", "https://host/m.jsonl?sig=abc")))
def test_any_records(records: list[dict[str, Any]], data: st.DataObject, url: str) -> None:
    rows = data.draw(changed(records, most=3))
    lines = [json.dumps(row) for row in rows]
    source = parse_source(url, lambda _path: False)
    for record in taken_or_refused(lambda: parse_records(lines, source)) or []:
        record.id.encode()
        record.language.encode()
        for path in (record.condition_path, record.emotion_path, record.text_ids_path, record.codes_path):
            assert files.is_local(path) if files.is_local(url) else path.startswith(url[: url.index("/", 8) + 1])


@given(damages())
def test_any_bytes_as_a_manifest(
    world: World, limits: Limits, tmp_path_factory: pytest.TempPathFactory, damage: list[Damage]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(damaged(world.train_manifest.read_bytes()[:700], damage))
    for skip in (False, True):
        taken_or_refused(lambda skip=skip: load_dataset([str(path)], limits, skip_bad_samples=skip))  # type: ignore[misc]
    taken_or_refused(lambda: read_corpus([str(path)]))
    taken_or_refused(lambda: read_corpus([str(path)], "am"))


@given(st.data())
def test_any_dataset(
    world: World,
    records: list[dict[str, Any]],
    limits: Limits,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    rows = [dict(row) for row in records]
    row = rows[data.draw(st.integers(0, len(rows) - 1))]
    key = data.draw(st.sampled_from((*sorted(row), "target_duration", "target_text", "speaker", "prompt_id")))
    places = st.sampled_from((str(folder), str(folder / "pipe"), "/dev/zero", "/dev/null", "/proc/self/mem", "."))
    row[key] = data.draw(values() | texts() | places | st.sampled_from([row[name] for name in sorted(row)]))
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = taken_or_refused(lambda: load_dataset([str(folder / "m.jsonl")], limits, skip_bad_samples=False))
    if dataset is not None:
        assert dataset.fingerprint
        assert dataset.samples(range(len(dataset)))
    examined = taken_or_refused(lambda: _examined(folder / "m.jsonl", world, limits))
    assert examined is None or (dataset is None) <= any(finding.level == "error" for finding in examined)


def _examined(manifest: Path, world: World, limits: Limits) -> list[Finding]:
    found = survey([str(manifest)], [str(manifest)], limits, lambda _done, _total: None)
    findings = list(examine_data(found, load_tokenizer(str(world.tokenizer))))
    json.dumps([finding.to_json() for finding in findings])
    return findings


def written(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ARRAY = written(np.arange(12, dtype=np.float32).reshape(3, 4))
HEADERS = st.fixed_dictionaries(
    {
        "descr": texts()
        | st.sampled_from(("<f4", ">i8", "|b1", "<U5", "|V0", "|S0", "|O", "<m8[s]", "<c16"))
        | values(),
        "fortran_order": st.booleans() | values(),
        "shape": st.lists(st.integers(-2, 2**40) | st.sampled_from((0, 2**63, 10**30)), max_size=40).map(tuple)
        | values(),
    }
)


@given(
    damages().map(lambda damage: damaged(ARRAY, damage))
    | HEADERS.map(repr).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_as_an_array(content: bytes) -> None:
    wide = b"\x93NUMPY\x02\x00" + len(content).to_bytes(4, "little") + content
    narrow = b"\x93NUMPY\x01\x00" + (len(content) % 2**16).to_bytes(2, "little") + content
    for whole in (content, wide, narrow, wide + bytes(48)):
        try:
            array = parse_npy(whole)
        except NpyFormatError:
            continue
        assert array.nbytes <= len(whole)


@pytest.fixture(scope="module")
def index(world: World, limits: Limits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed-shards")
    dataset = load_dataset([str(world.train_manifest)], limits, skip_bad_samples=False)
    write_shards(chosen(dataset, range(3)), str(folder), lambda _done, _total: None, shard_bytes=4096)
    return folder / "index.safetensors"


@given(st.data())
def test_any_index_of_a_sharded_dataset(index: Path, limits: Limits, data: st.DataObject) -> None:
    good = (index.parent / "good").read_bytes() if (index.parent / "good").exists() else index.read_bytes()
    (index.parent / "good").write_bytes(good)

    def change(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        if data.draw(st.booleans()):
            replaced = data.draw(changed(header, most=3))
            header.clear()
            header.update(replaced if isinstance(replaced, dict) else {})
        else:
            name = data.draw(st.sampled_from(sorted(arrays)))
            numbers = st.sampled_from((-1, 0, 1, 2, 3, 200, 2**31 - 1))
            shape = data.draw(st.sampled_from(((0,), (1,), (3,), (4,), (3, 16), (3, 1), ())))
            kind = data.draw(st.sampled_from((np.int32, np.int64, np.uint8, np.float32)))
            fill = data.draw(numbers)
            arrays[name] = np.full(shape, fill).astype(kind)

    content = damaged(good, data.draw(damages())) if data.draw(st.booleans()) else changed_index(good, change)
    taken_or_refused(lambda: parse_index(content, "index"))
    index.write_bytes(content)
    dataset = taken_or_refused(lambda: load_dataset([str(index.parent)], limits, skip_bad_samples=False))
    if dataset is not None:
        taken_or_refused(lambda: dataset.samples(range(len(dataset))))
