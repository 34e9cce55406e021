"""What is opened, and what the text of a data file may name."""

import pytest

from indextts_job.errors import ConfigError
from indextts_job.storage import urls
from indextts_job.storage.remote_files import RemoteFileSystem


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("reference://a::s3://bucket/b", "chains several file systems"),
        ("simplecache::s3://bucket/a", "chains several file systems"),
        ("s3://bucket/a::zip://b", "chains several file systems"),
        ("zip://a.zip", "zip:// is not opened"),
        ("ftp://host/a", "ftp:// is not opened"),
        ("S3://bucket/a", "S3:// is not opened"),
        ("data/odd://a", "is no URL"),
        ("s3://", "names no bucket or host"),
        ("memory:///a", "names no bucket or host"),
        ("s3://bucket/a\nb", "control characters"),
        ("https://user:secret@host/\0", "control characters"),
    ],
)
def test_what_is_not_one_plain_url_of_a_known_protocol_is_not_opened(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RemoteFileSystem.of(url)
    assert "secret" not in str(caught.value)


def test_a_plain_url_is_a_file_system_and_a_path() -> None:
    filesystem, path = RemoteFileSystem.of("memory://place/a/b")
    filesystem.write(path, b"content")
    assert RemoteFileSystem.of("memory://place/a/b")[0].read(path) == b"content"


@pytest.mark.parametrize("url", ["a/b", "/a", "~/a", "file:///a/b", "local:///a", "a::b"])
def test_local_paths_are_local(url: str) -> None:
    assert urls.is_local(url)


@pytest.mark.parametrize("url", ["a\0b", "half \ud800", "~nosuchuser/a"])
def test_what_is_no_path_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        urls.local_path(url)


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        ("x/a.npy", "data/pairs.jsonl", "data/x/a.npy"),
        ("x/a.npy", "pairs.jsonl", "x/a.npy"),
        ("/x/a.npy", "data/pairs.jsonl", "/x/a.npy"),
        ("~/a.npy", "data/pairs.jsonl", "~/a.npy"),
        ("file:///x/a.npy", "data/pairs.jsonl", "file:///x/a.npy"),
        ("x/a.npy", "s3://bucket/data/pairs.jsonl", "s3://bucket/data/x/a.npy"),
        ("../x/./a.npy", "s3://bucket/data/pairs.jsonl", "s3://bucket/x/a.npy"),
        ("s3://bucket/a.npy", "s3://bucket/data/pairs.jsonl", "s3://bucket/a.npy"),
        ("gcs://bucket/a.npy", "gs://bucket/pairs.jsonl", "gcs://bucket/a.npy"),
        ("a.npy", "https://host/d/pairs.jsonl?sig=x/y", "https://host/d/a.npy"),
    ],
)
def test_a_path_is_relative_to_the_document_or_at_its_place(path: str, document: str, expected: str) -> None:
    assert urls.resolved(path, document) == expected


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("s3://bucket/a.npy", "data/pairs.jsonl"),
        ("http://169.254.169.254/latest", "data/pairs.jsonl"),
        ("simplecache::s3://bucket/a.npy", "data/pairs.jsonl"),
        ("reference://a::b", "s3://bucket/pairs.jsonl"),
        ("a::zip://b", "s3://bucket/pairs.jsonl"),
        ("a::b", "s3://bucket/pairs.jsonl"),
        ("s3://other/a.npy", "s3://bucket/pairs.jsonl"),
        ("gs://bucket/a.npy", "s3://bucket/pairs.jsonl"),
        ("http://host/a.npy", "https://host/pairs.jsonl"),
        ("https://host:81/a.npy", "https://host/pairs.jsonl"),
        ("https://host\\@evil/a.npy", "https://host/pairs.jsonl"),
        ("/etc/passwd", "s3://bucket/pairs.jsonl"),
        ("file:///etc/passwd", "s3://bucket/pairs.jsonl"),
        ("../../a.npy", "s3://bucket/data/pairs.jsonl"),
        ("s3://bucket/../other/a.npy", "s3://bucket/data/pairs.jsonl"),
        ("a\0b", "data/pairs.jsonl"),
        ("half \ud800", "data/pairs.jsonl"),
        ("a\nb", "s3://bucket/pairs.jsonl"),
    ],
)
def test_a_data_file_names_nothing_outside_its_place(path: str, document: str) -> None:
    with pytest.raises(ValueError, match=r"leads away|no plain URL|no path can"):
        urls.resolved(path, document)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9000", "https://s3.eu.example.com/base", "http://[::1]:9000"])
def test_an_endpoint_is_the_address_of_a_server(url: str) -> None:
    urls.demand_endpoint(url, "storage.endpoint_url")


@pytest.mark.parametrize("url", ["nonsense", "s3://bucket", "http://", "http://host:port", "https://a b"])
def test_anything_else_is_no_endpoint(url: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.endpoint_url"):
        urls.demand_endpoint(url, "storage.endpoint_url")
