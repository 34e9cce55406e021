"""What users and older checkpoints rely on changes only on purpose: `make goldens`."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from indextts_job.checkpoint.manifest import parse_manifest
from indextts_job.checkpoint.objects import DamagedCheckpointError
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.storage.remote_storage import open_storage
from tests.support import goldens
from tests.support.convert_format_1 import convert
from tests.support.stores import content, reopened


def test_configuration_keys_and_defaults_change_only_on_purpose() -> None:
    assert goldens.help_config() == goldens.CONFIG.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(goldens.FOLDER.glob("manifest-v*.json")), ids=lambda path: path.name)
def test_manifests_of_every_released_format_are_read(path: Path) -> None:
    manifest = parse_manifest(path.read_bytes(), str(path))
    assert manifest.name == CheckpointName(1200, 3, 1000, ("best", "final"))
    assert manifest.tensors["model/a"].shape == (8, 4)
    assert manifest.tensors["base/frozen"].dtype == "F16"
    assert manifest.files["tokenizer.model"] in manifest.objects


def test_the_current_format_is_written_as_documented() -> None:
    def comparable(content: bytes) -> dict[str, object]:
        document: dict[str, object] = json.loads(content)
        return document | {"created": "", "sha256": ""}

    assert comparable(goldens.manifest()) == comparable(goldens.MANIFEST.read_bytes())


def test_checkpoints_of_format_1_are_converted_and_no_tensor_changes(tmp_path: Path) -> None:
    shutil.copytree(goldens.FOLDER / "run-format-1", tmp_path / "run")
    storage = open_storage(str(tmp_path / "run"))
    assert convert(storage) == 2
    store = CheckpointStore(storage)
    for name in store.names():
        expected = {key: tensor for group in content(name.step).groups for key, tensor in group.items()}
        loaded = store.load(store.manifest(name))
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())
        assert store.read_file(store.manifest(name), "tokenizer.model") == b"pieces"
    assert convert(storage) == 0
    damaged = next((tmp_path / "run/shared").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedCheckpointError):
        reopened(store).verify(store.manifest(store.names()[0]))
