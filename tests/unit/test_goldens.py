"""What users and older checkpoints rely on changes only on purpose: `make goldens`."""

import json
from pathlib import Path

import pytest

from indextts_job.checkpoint.manifest import parse_manifest
from indextts_job.checkpoint.retention import CheckpointName
from tests.support import goldens


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
