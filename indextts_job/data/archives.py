"""Archives (`.npz`) with the arrays of one utterance, and the names by which their members go. Nothing is unpickled.

A member is named like a file in a folder: `features/utt1.npz/codes.npy`. So a sample names its arrays in one way,
wherever they lie.
"""

import io
import re
import zipfile
import zlib

from indextts_job.data.npy import NpyFormatError
from indextts_job.storage import files
from indextts_job.storage.urls import file_path

SUFFIX = ".npz"
MEMBERS = {"text": "text_ids", "codes": "codes", "condition": "spk_emb", "emotion": "emo_vec"}
"""The member of each use, by the names of the public preprocessing."""
LARGEST_ARCHIVE_BYTES = 2**26
"""Archives may hold more than is read, but hundreds of megabytes are none of one utterance."""
_MEMBER = re.compile(rf"(?P<archive>.+)/(?P<member>{'|'.join(MEMBERS.values())})\.npy", re.DOTALL)


def member_of(archive: str, use: str) -> str:
    """The name of the array of a use in an archive."""
    return f"{archive}/{MEMBERS[use]}.npy"


def archive_of(path: str) -> str | None:
    """The archive whose member it is; None for a file of its own."""
    match = _MEMBER.fullmatch(path)
    # A folder may be called like an archive's member, but not like an archive.
    return match["archive"] if match and file_path(match["archive"]).endswith(SUFFIX) else None


class Reader:
    """Reads files and members of archives; an archive is read once for all members that are asked for in a row."""

    def __init__(self) -> None:
        self._url = ""
        self._content = b""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """The bytes of a `.npy` file, or of a member of an archive.

        Args:
            path: Its path or URL.
            limit_bytes: A larger one is refused.

        Raises:
            FileNotFoundError: There is no such file.
            NpyFormatError: The archive is damaged, or has no such member.
            DataError: The file is too large.
        """
        archive = archive_of(path)
        if archive is None:
            return files.read_bytes(path, limit_bytes)
        if archive != self._url:
            self._content = files.read_bytes(archive, LARGEST_ARCHIVE_BYTES)
            self._url = archive
        return _member(self._content, path.rpartition("/")[2], limit_bytes)


def _member(content: bytes, name: str, limit_bytes: int) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            info = archive.getinfo(name)
            if info.file_size > limit_bytes:
                raise NpyFormatError(f"{info.file_size} bytes, expected at most {limit_bytes}")
            with archive.open(info) as member:
                # A member may say that it is smaller than it is.
                return member.read(limit_bytes + 1)
    except KeyError:
        raise NpyFormatError(f"the archive has no {name}") from None
    # What zipfile raises for damage, for an unknown compression, for encryption, and for a false size.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise NpyFormatError(f"not a readable .npz archive ({error})") from error
