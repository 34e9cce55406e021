"""An index that vouches for itself and is wrong all the same is one DataError, whatever it says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from indextts_job.data.containers import METADATA
from indextts_job.data.dataset import USES, Limits
from indextts_job.data.shard_index import KINDS, parse_index, parse_shard
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World
from indextts_job.errors import DataError
from indextts_job.hashing import integrity_hash
from indextts_job.model.config import gpt_config
from indextts_job.storage.files import read_yaml
from tests.support.shard_indexes import Change, changed_index

SMALL_SHARD = 3 * 32 * 32 * 4


@pytest.fixture(scope="module")
def sharded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    limits = Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)
    dataset = load_dataset([f"{world.train_manifest}::am"], limits, skip_bad_samples=False)
    folder = tmp_path_factory.mktemp("shards")
    write_shards(dataset, str(folder), lambda _done, _total: None, shard_bytes=SMALL_SHARD)
    return folder


@pytest.fixture(scope="module")
def index(sharded: Path) -> bytes:
    return (sharded / "index.safetensors").read_bytes()


def test_an_unchanged_index_is_read(index: bytes) -> None:
    parsed = parse_index(changed_index(index, lambda _header, _arrays: None), "index")
    assert len(parsed.names) == 40
    assert parsed.languages == ("am",)


def shard(kind: str, **changes: object) -> Change:
    return lambda header, _arrays: header["tables"][kind]["shards"][0].update(changes)


def table(kind: str, **changes: object) -> Change:
    return lambda header, _arrays: header["tables"][kind].update(changes)


def array(name: str, values: object) -> Change:
    return lambda _header, arrays: arrays.update({name: np.asarray(values)})


def without(part: str) -> Change:
    return lambda header, arrays: header.pop(part, None) is None and arrays.pop(part)


@pytest.mark.parametrize(
    "change",
    [
        *(
            shard("condition", name=name)
            for name in (
                "../../precious.txt",
                "/etc/passwd",
                "emotion-00000.safetensors",
                "ids-00000.safetensors",
                "condition-0.safetensors",
                "condition-00000.safetensors/../x",
                "condition-00000.safetensors\n",
                "condition-\u0660\u0660\u0660\u0660\u0660.safetensors",
                "s3://other/condition-00000.safetensors",
                "",
                None,
                7,
            )
        ),
        shard("condition", sha256="../x"),
        shard("condition", sha256="A" * 64),
        shard("condition", sha256=None),
        shard("condition", rows=4),
        shard("ids", rows=4),
        shard("ids", size_bytes=10**9),
        shard("emotion", rows=2**31),
        shard("condition", rows=0),
        shard("condition", rows=True),
        shard("condition", rows=10**30),
        shard("condition", size_bytes=10**15),
        shard("condition", data_start=-8),
        shard("condition", data_start=9),
        shard("condition", extra=1),
        table("condition", dtype="float64"),
        table("condition", dtype=[]),
        table("condition", row_shape=[]),
        table("condition", row_shape=[2**40, 2**40]),
        table("condition", row_shape="32"),
        table("ids", dtype="float32"),
        table("ids", shards=[]),
        table("condition", shards=None),
        table("condition", shards=[]),
        table("condition", shards=[None]),
        lambda header, _arrays: header["tables"].pop("emotion"),
        lambda header, _arrays: header["tables"]["condition"]["shards"].pop(),
        lambda header, _arrays: header.update(tables=[]),
        lambda header, _arrays: header.update(languages=[1]),
        lambda header, _arrays: header.update(languages=[]),
        lambda header, _arrays: header.update(languages="am"),
        lambda header, _arrays: header.update(skipped=[{"id": 1, "reason": "x"}]),
        lambda header, _arrays: header.update(skipped=[{"id": "a"}]),
        lambda header, _arrays: header.update(fingerprint="short"),
        lambda header, _arrays: header.update(format_version=[1]),
        *(lambda header, _arrays, bad=bad: header["largest"].update(text=bad) for bad in (-1, True, "9", None, 2**31)),
        lambda header, _arrays: header.pop("largest"),
        without("tables"),
        without("skipped"),
        without("languages"),
        without("fingerprint"),
        without("id_values"),
        without("id_offsets"),
        without("text_lengths"),
        without("codes_lengths"),
        *(without(f"{kind}_checks") for kind in KINDS),
        *(without(f"{use}_digests") for use in USES),
        *(without(f"pair_{name}") for name in ("language", *KINDS)),
        array("pair_ids", np.full(40, 40, np.int32)),
        array("pair_ids", np.full(40, -1, np.int32)),
        array("pair_ids", np.zeros(39, np.int32)),
        array("pair_ids", np.zeros((40, 1), np.int32)),
        array("pair_ids", np.zeros(40, np.uint8)),
        array("pair_language", np.ones(40, np.int32)),
        array("text_lengths", np.zeros(40, np.int32)),
        array("text_lengths", np.full(40, 2**31 - 1, np.int32)),
        array("text_lengths", np.ones(39, np.int32)),
        array("codes_lengths", np.ones(40, np.int64)),
        array("id_offsets", np.array([0], np.int64)),
        array("id_offsets", np.array([0, 10**9], np.int64)),
        array("id_offsets", np.zeros(41, np.int64)),
        array("id_values", np.zeros(9, np.int32)),
        array("ids_checks", np.zeros((39, 16), np.uint8)),
        array("condition_digests", np.zeros((3, 16), np.uint8)),
        array("condition_digests", np.zeros(640, np.uint8)),
        lambda _header, arrays: arrays.update(id_values=np.full_like(arrays["id_values"], 0xFF)),
    ],
)  # fmt: skip
def test_an_index_that_contradicts_itself_is_refused(index: bytes, change: Change) -> None:
    with pytest.raises(DataError, match=r"^index\.safetensors: "):
        parse_index(changed_index(index, change), "index.safetensors")


@pytest.mark.parametrize(
    "text", ["[]", "1", "null", "[" * 10_000, '{"format_version": 1}', '{"format_version": ' + "9" * 5000 + "}"]
)
def test_a_header_that_is_none_is_refused(text: str) -> None:
    digest = integrity_hash(text.encode())
    content = safetensors.numpy.save({"a": np.zeros(1)}, {METADATA: f"{digest} {text}"})
    with pytest.raises(DataError, match="index"):
        parse_index(content, "index")


@pytest.mark.parametrize("size", [0, 1, 2**40, 2**63])
def test_a_length_of_the_header_that_lies_takes_no_memory(size: int) -> None:
    with pytest.raises(DataError, match="index"):
        parse_index(size.to_bytes(8, "little") + b"{}", "index")


def test_a_name_in_an_index_never_leaves_its_folder(sharded: Path, index: bytes) -> None:
    names = re.findall(rb'name\\+": \\+"([^"\\]+)', index)
    assert names
    for name in names:
        assert (sharded / name.decode()).parent == sharded


@pytest.mark.parametrize("note", ["{}", "[]", "null", '{"shard": {}}', '{"shard": 3, "rows_sha256": ""}', "[" * 10_000])
def test_a_damaged_note_beside_a_shard_only_has_it_written_again(
    world: World, sharded: Path, tmp_path: Path, note: str
) -> None:
    limits = Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)
    dataset = load_dataset([f"{world.train_manifest}::am"], limits, skip_bad_samples=False)
    for name in ("emotion-00000.safetensors", "emotion-00000.safetensors.json"):
        (tmp_path / name).write_bytes((sharded / name).read_bytes())
    (tmp_path / "emotion-00000.safetensors.json").write_text(note)
    write_shards(dataset, str(tmp_path), lambda _done, _total: None, shard_bytes=SMALL_SHARD)
    good = json.loads((sharded / "emotion-00000.safetensors.json").read_text())
    assert json.loads((tmp_path / "emotion-00000.safetensors.json").read_text()) == good
    assert parse_shard(good["shard"], "emotion").name == "emotion-00000.safetensors"
