"""An API server and the kubectl configuration that leads to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from s3fs import S3FileSystem

from tests.kubernetes.api_server import ApiServer, running


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with running() as server:
        path = tmp_path / "kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server.url}}],
            "users": [{"name": "me", "user": {"token": "token"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me", "namespace": "lab"}}],
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setenv("HOME", str(tmp_path))
        # A launcher that looks at the run in its bucket finds no credentials, and does not search a cloud for some.
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server
        # What was made without credentials would be found again by tests that have some.
        S3FileSystem.clear_instance_cache()
