"""What a preparation leaves on its storage: where it stands, and whose output it is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.containers import written
from indextts_job.data.shard_index import PREPARED_BY
from indextts_job.errors import ConfigError
from indextts_job.prepare.ownership import demand_own, is_prepared
from indextts_job.prepare.preparation import Preparation, standing, standing_lines, write_preparation
from indextts_job.prepare.unit_store import UnitStore
from indextts_job.prepare.units import Making, Unit, cut
from indextts_job.prepare.utterances import Utterance
from indextts_job.storage.remote_storage import open_storage

TRAIN, VALIDATION = "train.index.safetensors", "val.index.safetensors"
MAKING = Making(encoders={}, min_seconds=1.0, max_seconds=30.0, most_codes=400)


def units_of(*ids: str) -> list[Unit]:
    utterances = [
        Utterance(
            id=name, audio=f"{name}.wav", url=f"{name}.wav", text="t", speaker="s", language="am", duration_s=None,
            split="", origin="m:1",
        )
        for name in ids
    ]  # fmt: skip
    return cut(utterances, 2, MAKING)


def prepared(folder: Path, *ids: str) -> UnitStore:
    """The output of a preparation of these utterances, all of whose units are finished."""
    storage, units = open_storage(str(folder)), units_of(*ids)
    description = Preparation(
        utterances=len(ids), units=tuple(unit.name for unit in units), encoders={}, files={}, program="p"
    )
    write_preparation(storage, description)
    for unit in units:
        record = {"utterances": [{"id": one.id, "status": "ok"} for one in unit.utterances]}
        storage.write(f"units/{unit.name}.json", json.dumps(record).encode())
    return UnitStore(storage)


def index(key: str) -> bytes:
    return written({key: {}}, {"x": np.zeros(1, np.uint8)})


def test_an_index_says_whether_a_preparation_wrote_it(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    contents = {"ours": index(PREPARED_BY), "theirs": index("other"), "none": b"no index", "empty": b""}
    for name, content in contents.items():
        storage.write(name, content)
    assert [name for name in contents if is_prepared(storage, name)] == ["ours"]


def test_a_dataset_of_another_origin_is_refused_by_name(tmp_path: Path) -> None:
    store = UnitStore(open_storage(str(tmp_path)))
    demand_own(store, units_of("a"))
    # Of a preparation whose description was deleted.
    store.storage.write(TRAIN, index(PREPARED_BY))
    demand_own(store, units_of("a"))
    store.storage.write(VALIDATION, index("other"))
    with pytest.raises(ConfigError, match=f"{tmp_path}/{VALIDATION} is a dataset that was not prepared here"):
        demand_own(store, units_of("a"))


def test_half_of_the_utterances_may_be_removed_and_no_more(tmp_path: Path) -> None:
    store = prepared(tmp_path, *"abcdefgh")
    demand_own(store, units_of(*"abcdefgh"))
    demand_own(store, units_of(*"efgh", "new"))
    with pytest.raises(ConfigError, match=r"5 of its 8 are not in the manifests, for example [a-e]"):
        demand_own(store, units_of(*"fgh"))


def test_units_that_say_nothing_count_for_nobody(tmp_path: Path) -> None:
    store = prepared(tmp_path, *"abcdefgh")
    contents = (b"{", b"[]", b'{"utterances": [1]}', b"[" * 100_000)
    for unit, content in zip(units_of(*"abcdefgh"), contents, strict=True):
        store.storage.write(f"units/{unit.name}.json", content)
        assert store.ids_of(unit.name) == []
    assert store.ids_of("00009-none") == []
    demand_own(store, units_of("x"))


def test_a_damaged_description_is_as_none(tmp_path: Path) -> None:
    store = prepared(tmp_path, *"abcdefgh")
    store.storage.write("preparation.json", b"{")
    demand_own(store, units_of("x"))


def test_a_unit_can_be_made_again_by_several(tmp_path: Path) -> None:
    """Each worker that begins looks for what has changed, and they begin together."""
    store, units = prepared(tmp_path, *"ab"), units_of(*"ab")
    assert store.unfinished(units) == []
    store.make_again(units[0].name)
    store.make_again(units[0].name)
    assert store.unfinished(units) == units


def test_a_dataset_that_is_older_than_its_units_is_not_called_assembled(tmp_path: Path) -> None:
    store = prepared(tmp_path, *"abcd")

    def told() -> str:
        return dict(standing_lines(standing(store.storage)))["dataset"]

    assert told() == "not assembled yet"
    store.storage.write(TRAIN, index(PREPARED_BY))
    for path in (tmp_path / "units").iterdir():
        os.utime(path, (1000, 1000))
    assert told() == "assembled"
    youngest = next((tmp_path / "units").iterdir())
    os.utime(tmp_path / TRAIN, (2000, 2000))
    os.utime(youngest, (3000, 3000))
    assert told().startswith("older than the units: it is assembled again when all of them are finished")
    youngest.unlink()
    assert told() == "assembled", "the unit that is made again is not finished yet"
