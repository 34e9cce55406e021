"""A text stream that never fails: text that cannot be written is dropped."""

import io
from typing import Any, TextIO


class QuietStream(io.TextIOBase):
    """Writes to another stream until that fails, and drops everything from then on.

    A terminal may be closed while its job runs, a disk may fill up with the log, a pipe may lose its reader. None of
    this may stop a training.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed = False

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the other stream, unless it has failed."""
        self._tried(self._stream.flush)

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return not self._failed and self._stream.isatty()

    def fileno(self) -> int:
        """File descriptor of the other stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the other stream."""
        return self._stream.encoding

    def _tried(self, work: Any) -> None:  # noqa: ANN401  # any call without arguments
        if self._failed:
            return
        try:
            work()
        except UnicodeEncodeError:  # only this text is lost; the stream itself works
            return
        except (OSError, ValueError):  # a closed stream raises ValueError
            self._failed = True
