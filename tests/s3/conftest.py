"""S3 servers, and this process set up to reach them."""

import itertools
from collections.abc import Callable, Iterator

import fsspec
import pytest
from s3fs import S3FileSystem

from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from tests.support.servers import Server, client_environment, moto, rclone, running, seaweedfs

Connect = Callable[[str], None]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(seaweedfs(tmp_path_factory.mktemp("seaweedfs"))) as server:
        yield server


@pytest.fixture(scope="session")
def lawless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(rclone(tmp_path_factory.mktemp("rclone"))) as server:
        yield server


@pytest.fixture(scope="session")
def mocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(moto(tmp_path_factory.mktemp("moto"))) as server:
        yield server


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Reach an endpoint from here on, with new clients."""

    def connect_to(url: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        files.configure_object_stores(StorageConfig())
        S3FileSystem.clear_instance_cache()

    return connect_to


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients of one test are not reused by the next, which may talk to another server."""
    files.configure_object_stores(StorageConfig())
    yield
    fsspec.config.conf.pop("s3", None)
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_run(seaweed: Server, reach: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh run on SeaweedFS."""
    for name, value in client_environment(seaweed).items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/runs/{next(_numbers)}"


@pytest.fixture
def lawless_run(lawless: Server, reach: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh run on rclone."""
    for name, value in client_environment(lawless).items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/runs-{next(_numbers)}"


@pytest.fixture
def mocked_run(mocked: Server, reach: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh run on moto."""
    for name, value in client_environment(mocked).items():
        monkeypatch.setenv(name, value)
    filesystem = fsspec.filesystem("s3")
    if not filesystem.exists("bucket"):
        filesystem.mkdir("bucket")
    return f"s3://bucket/runs/{next(_numbers)}"
