"""A stream for people that never fails: what cannot be written is dropped."""

import io
from typing import Any, TextIO


class QuietStream(io.TextIOBase):
    """Writes to another stream until that fails, and from then on to nowhere.

    A terminal is closed while its job goes on, a disk fills up with the log, a pipe loses its reader. None of it is a
    reason to stop a training.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed = False

    def write(self, text: str) -> int:
        """Write, or drop."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if there is still somebody."""
        self._tried(self._stream.flush)

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return not self._failed and self._stream.isatty()

    def fileno(self) -> int:
        """Of the other stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the other stream."""
        return self._stream.encoding

    def _tried(self, work: Any) -> None:  # noqa: ANN401  # any call without arguments
        if self._failed:
            return
        try:
            work()
        except UnicodeEncodeError:  # the terminal lacks a character; it is there all the same
            return
        except (OSError, ValueError):
            self._failed = True
