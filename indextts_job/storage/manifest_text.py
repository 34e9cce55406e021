"""Dataset manifests as text: read whole, decoded, and cut into lines."""

from collections.abc import Iterator

from indextts_job.errors import DataError
from indextts_job.redaction import redacted
from indextts_job.storage.files import read_manifest

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"),
                     (b"\xfe\xff", "UTF-16"))  # fmt: skip


def read_manifest_text(url: str) -> str:
    """A dataset manifest as text.

    Raises:
        DataError: It is missing or not UTF-8.
    """
    return _decoded(read_manifest(url), redacted(url))


def manifest_lines(content: bytes, shown: str) -> Iterator[str]:
    """The lines of a manifest, one at a time: all of them as texts take several times the memory.

    Args:
        content: The whole manifest.
        shown: Its name for messages.

    Raises:
        DataError: It is not UTF-8.
    """
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    while start < len(content):
        stop = content.find(b"\n", start)
        stop = len(content) if stop < 0 else stop
        try:
            yield content[start:stop].decode()
        except UnicodeDecodeError:
            _decoded(content, shown)  # for a message with the position in the file
            raise
        start = stop + 1


def _decoded(content: bytes, shown: str) -> str:
    try:
        # Windows programs begin UTF-8 files with a byte-order mark, which JSON does not allow.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}: {_encoding_text(content, error)}") from error


def _encoding_text(content: bytes, error: UnicodeDecodeError) -> str:
    """The encoding that a manifest has instead of UTF-8, and how to convert it, if a byte-order mark tells."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "")
    found = f"{marked}, not UTF-8 text" if marked else f"not UTF-8 text ({error})"
    how = f" Convert it: iconv -f {marked} -t UTF-8." if marked else ""
    return f"{found}. A manifest is JSON lines in UTF-8.{how}"


def lines_of(text: str) -> list[str]:
    """The lines of a text file, which end at line feeds only.

    `str.splitlines` also splits at characters that may stand inside a JSON string (U+2028, U+0085).
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]
