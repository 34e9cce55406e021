"""Large transfers: by the fast client where it can, with the same result by the general one where it cannot."""

import random
import ssl
from types import SimpleNamespace
from typing import Any

import pytest

from indextts_job.errors import UnavailableError
from indextts_job.storage import remote_files
from indextts_job.storage.bulk_transfers import FAILURES, LEAST_BYTES, BulkTransfers
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_files import RemoteFileSystem
from indextts_job.storage.remote_storage import RemoteStorage, open_storage
from tests.s3.conftest import Connect
from tests.support.fault_proxy import proxy
from tests.support.servers import Server

CONTENT = random.Random(0).randbytes(LEAST_BYTES + 5)


def forbid(monkeypatch: pytest.MonkeyPatch, filesystem: RemoteFileSystem, *methods: str) -> None:
    for method in methods:

        def refuse(*_arguments: object, **_named: object) -> None:
            raise AssertionError("the general client was asked")

        monkeypatch.setattr(filesystem.fsspec, method, refuse)


def test_large_puts_and_gets_need_nothing_of_the_general_client(s3_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3_run)
    assert isinstance(storage, RemoteStorage)
    storage.list("")
    forbid(monkeypatch, storage._filesystem, "pipe_file", "cat_file")
    # Memory that is still in use elsewhere, as the buffer of a save is.
    storage.write("folder/large äö +%", memoryview(bytearray(CONTENT)))
    assert storage.read_large("folder/large äö +%", len(CONTENT)).tobytes() == CONTENT
    with pytest.raises(FileNotFoundError):
        storage.read_large("gone", len(CONTENT))


@pytest.mark.parametrize("trouble", ["no store", "credentials", "certificates", "refused"])
def test_what_the_fast_client_cannot_do_the_general_one_does(
    s3_run: str, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    asked = []

    async def failing(_self: BulkTransfers, *_arguments: object) -> Any:
        asked.append(1)
        raise ValueError("no such thing")

    storage = open_storage(s3_run)
    assert isinstance(storage, RemoteStorage)
    if trouble == "no store":
        monkeypatch.setattr(BulkTransfers, "_store", failing)
    elif trouble == "credentials":
        monkeypatch.setattr(BulkTransfers, "_credentials", failing)
    elif trouble == "refused":
        real = BulkTransfers._credentials

        async def wrong(self: BulkTransfers) -> Any:
            asked.append(1)
            return {**await real(self), "secret_access_key": "wrong"}

        monkeypatch.setattr(BulkTransfers, "_credentials", wrong)
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or __file__)
        monkeypatch.setattr(storage._filesystem._bulk, "_filesystem", Https(storage._filesystem.fsspec))
    for number in range(FAILURES + 2):
        storage.write(f"{number}", CONTENT)
        assert storage.read_large(f"{number}", len(CONTENT)).tobytes() == CONTENT
    # Given up after a few failures, so that they do not cost a request each for the rest of the run.
    assert len(asked) <= FAILURES
    with pytest.raises(FileNotFoundError):
        storage.read_large("gone", len(CONTENT))


class Https:
    """A file system whose server has a certificate."""

    def __init__(self, filesystem: Any) -> None:
        self.loop = filesystem.loop

    async def set_session(self) -> Any:
        return SimpleNamespace(meta=SimpleNamespace(endpoint_url="https://127.0.0.1:1", region_name=""))


def test_an_object_that_is_shorter_than_its_range_gives_what_there_is(s3_run: str) -> None:
    storage = open_storage(s3_run)
    storage.write("short", CONTENT)
    assert storage.read_large("short", len(CONTENT) + 3 * LEAST_BYTES).tobytes() == CONTENT


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_transfer_without_an_answer_ends_in_time(
    s3_run: str, seaweed: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    open_storage(s3_run).write("large", CONTENT)
    for name in ("CALL_TIMEOUT_S", "LEAST_TIMEOUT_S"):
        monkeypatch.setattr(remote_files, name, 2.0)
    monkeypatch.setattr(remote_files, "SLOWEST_BYTES_PER_S", 1e9)

    def hang(_number: int, verb: str, path: str) -> str:
        return "hang" if verb == method and path.endswith("large") else ""

    with proxy(seaweed.port, hang) as (url, faults):
        connect(url)
        storage = RemoteStorage(s3_run, StorageConfig(retry_seconds=0.0))
        calls = {
            "PUT": lambda: storage.write("large", CONTENT),
            "GET": lambda: storage.read_large("large", len(CONTENT)),
        }
        with pytest.raises(UnavailableError):
            calls[method]()
        assert faults
