"""Whole files by local path or fsspec URL, with errors that say what to do."""

from pathlib import Path

import fsspec
import yaml

from indextts_job.errors import AccessRefusedError, ConfigError, DataError, UnavailableError


def is_local(url: str) -> bool:
    """Whether a path or URL is on a local file system."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """A local path or `file://` URL as a path."""
    return Path(url.removeprefix("file://")).expanduser()


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return local_path(url).exists()
    filesystem, path = fsspec.core.url_to_fs(url)
    return bool(filesystem.exists(path))


def read_bytes(url: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: It is not there.
        AccessRefusedError: It may not be read.
        UnavailableError: The storage failed.
    """
    try:
        if is_local(url):
            return local_path(url).read_bytes()
        filesystem, path = fsspec.core.url_to_fs(url)
        content: bytes = filesystem.cat_file(path)
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise FileNotFoundError(f"{url} is a folder, expected a file") from error
    except PermissionError as error:
        raise AccessRefusedError(f"{url}: reading was refused ({error}). Check credentials and permissions.") from error
    except ImportError as error:
        raise ConfigError(f"{url}: {error}. Install the fsspec package of this kind of storage.") from error
    except ValueError as error:
        raise ConfigError(f"{url}: {error}.") from error
    except OSError as error:
        raise UnavailableError(f"{url}: reading failed ({error}). Check the storage and start again.") from error
    return content


def read_input(url: str, what: str, key: str) -> bytes:
    """A file that the configuration names.

    Args:
        url: Path or URL.
        what: The thing in words, for messages.
        key: The configuration key that names it.

    Raises:
        ConfigError: It is not there.
    """
    if not url:
        raise ConfigError(f"{key} is not set. Give the path or URL of the {what}.")
    try:
        return read_bytes(url)
    except FileNotFoundError:
        raise ConfigError(
            f"{what} not found: {url} (from {key}, seen from {Path.cwd()}). Give an existing path or URL."
        ) from None


def read_yaml(url: str, what: str, key: str) -> object:
    """A YAML file that the configuration names, parsed.

    Raises:
        ConfigError: It is not there or not YAML.
    """
    content = read_input(url, what, key)
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{url}: not valid YAML: {error}") from error


def read_manifest_text(url: str) -> str:
    """A dataset manifest as text.

    Raises:
        DataError: It is missing or not UTF-8.
    """
    try:
        return read_bytes(url).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"manifest not found: {url} (seen from {Path.cwd()}). Give an existing path or URL.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: not UTF-8 text ({error}). A manifest is JSON lines in UTF-8.") from error
