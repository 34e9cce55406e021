"""Files from outside: regular ones of a fitting size are read, everything else is one message and no wait."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.array_files import BadArrayError, check_ids
from indextts_job.errors import ConfigError, DataError, IndexTTSJobError
from indextts_job.storage import files
from indextts_job.storage.manifest_text import lines_of, read_manifest_text
from indextts_job.storage.remote_files import RemoteFileSystem


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def sparse(folder: Path) -> str:
    with (folder / "sparse").open("wb") as file:
        file.truncate(2**40)
    return str(folder / "sparse")


def unix_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    return str(folder / "socket")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (unix_socket, "is a socket or a device, expected a regular file"),
        (pipe, "is a pipe, expected a regular file"),
        (lambda _folder: "/dev/zero", "is a device, expected a regular file"),
        (lambda _folder: "/dev/null", "is a device"),
        (sparse, "1099511627776 bytes, expected at most"),
    ],
)
def test_what_is_no_regular_file_of_a_fitting_size_is_refused_at_once(tmp_path: Path, make: object, words: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=words):
        files.read_yaml(path, "run configuration", "the command line")
    with pytest.raises(DataError, match=words):
        read_manifest_text(path)
    with pytest.raises(BadArrayError, match=words):
        check_ids(path, 10, 10, "code")


@pytest.mark.parametrize("path", ["a\0b", "half \ud800", "~nosuchuser/a", "x" * 300, "x/" * 3000])
def test_what_is_no_path_is_a_message(path: str) -> None:
    for read in (files.read_bytes, files.exists, files.sizes, read_manifest_text):
        with pytest.raises((ConfigError, DataError)):
            read(path)
    with pytest.raises(BadArrayError):
        check_ids(path, 10, 10, "code")


def test_a_remote_file_that_is_too_large_is_refused_before_it_is_read_whole() -> None:
    filesystem, path = RemoteFileSystem.of("memory://files/large")
    filesystem.write(path, bytes(9 * 2**20))
    assert len(files.read_bytes("memory://files/large")) == 9 * 2**20
    with pytest.raises(DataError, match="9437184 bytes, expected at most 8500000"):
        files.read_bytes("memory://files/large", 8_500_000)
    with pytest.raises(DataError, match="expected at most 100"):
        files.read_bytes("memory://files/large", 100)


def test_a_web_server_is_not_written_to() -> None:
    filesystem, path = RemoteFileSystem.of("https://127.0.0.1:9/a")
    with pytest.raises(ConfigError, match="for reading only"):
        filesystem.write(path, b"x", mode="create")


def test_lines_end_at_line_feeds_only() -> None:
    assert lines_of('{"a": "x\u2028y\x85z\x0c"}\r\nb\n\nc') == ['{"a": "x\u2028y\x85z\x0c"}', "b", "", "c"]
    assert lines_of("a\n") == ["a"]
    assert lines_of("") == []


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_a_manifest_of_another_unicode_encoding_is_named_as_such(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": "a"}\n', encoding=encoding)
    with pytest.raises(DataError, match=f"{name}, not UTF-8 text.*iconv -f {name}"):
        read_manifest_text(str(path))


def test_a_manifest_with_a_utf_8_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}", encoding="utf-8-sig")
    assert read_manifest_text(str(tmp_path / "pairs.jsonl")) == "{}"


def test_backslashes_of_windows_are_named_with_what_to_write() -> None:
    with pytest.raises(DataError, match=r"has backslashes.*write / instead: data/pairs\.jsonl"):
        read_manifest_text("C:\\data\\pairs.jsonl")
    with pytest.raises(BadArrayError, match=r"file not found\. It has backslashes.*codes/a\.npy"):
        check_ids("no/codes\\a.npy", 10, 10, "code")


@pytest.mark.parametrize("path", ["/home/ann/data/codes/a.npy", "~/nowhere/codes/a.npy"])
def test_a_path_of_another_machine_is_recognised(path: str) -> None:
    with pytest.raises(BadArrayError, match=r"there is no .* on this machine.*relative to it"):
        check_ids(path, 10, 10, "code")


def test_a_large_array_is_read_as_far_as_the_model_could_take_it(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros(2_000, np.int64))
    with pytest.raises(BadArrayError, match="2000 values, the model's limit is 10"):
        check_ids(str(tmp_path / "codes.npy"), 10, 10, "code")
    np.save(tmp_path / "codes.npy", np.zeros(200_000, np.int64))
    with pytest.raises(BadArrayError, match="1600128 bytes, expected at most 1048576"):
        check_ids(str(tmp_path / "codes.npy"), 10, 10, "code")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_of_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    from indextts_job.storage.config import StorageConfig

    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(ConfigError, match=f"{variable} is 'nonsense'"):
        files.configure_object_stores(StorageConfig())


def test_no_message_tells_the_signature_of_a_link() -> None:
    url = "memory://files/none.jsonl?X-Amz-Signature=0123456789abcdef"
    for read in (read_manifest_text, lambda url: files.read_input(url, "tokenizer", "inputs.tokenizer")):
        with pytest.raises(IndexTTSJobError) as caught:
            read(url)
        assert "0123456789abcdef" not in str(caught.value)
