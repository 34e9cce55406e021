"""Print untrusted text to a terminal: no control sequences, no forged lines, no markup.

Every name, id, path or message that comes from a file or a network passes through here before it is printed.
"""

import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_LINE_BREAKS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
WIDTH_OF_FILES = 200
"""Width of tables in files and pipes, where no terminal limits it."""
GAP, NO_BREAK = "  ", "\u00a0"
_HARMLESS = "\u200c\u200d"
"""Zero-width joiner and non-joiner: not printable, but many scripts and emoji need them."""


def _visible(character: str) -> str:
    # Not printable are control characters and escape sequences, marks that change the direction of a line, halves of
    # surrogate pairs (which no stream can encode), and line breaks other than "\n". Python also counts all spaces
    # but the ordinary one as not printable.
    if character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def lines(text: object) -> str:
    """A text with its line breaks and tabs; other control characters are escaped as in Python."""
    return "".join(character if character in "\n\t" else _visible(character) for character in str(text))


def one_line(text: object) -> str:
    """A text on one line: line breaks become spaces, control characters are escaped as in Python."""
    return "".join(map(_visible, _LINE_BREAKS.sub(" ", str(text)).replace("\t", " ")))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once. If the output cannot be written, it is dropped from then on and no error is raised.

    Args:
        text: The line.
        stream: The output; standard output by default.
    """
    target = stream or sys.stdout
    try:
        print(text, file=target, flush=True)
    except (OSError, ValueError):  # a closed terminal, a full disk, a closed pipe, a closed stream
        silence(target)


def silence(stream: TextIO) -> None:
    """Redirect a stream to nowhere, together with what is in its buffer."""
    # Python flushes the standard streams at exit, and an error there would change the exit code.
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor has no buffer that could fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def console(stream: TextIO | None = None) -> Console:
    """A console for tables and lines, as wide as the terminal; without a terminal `WIDTH_OF_FILES` wide."""
    target = stream or sys.stdout
    width = None if target.isatty() else WIDTH_OF_FILES
    return Console(file=target, soft_wrap=not target.isatty(), width=width, highlight=False, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of plain cells; a column without any content is left out.

    Args:
        columns: The headings.
        rows: The cells of each row, in the order of the columns.
    """
    kept = _with_content(len(columns), rows) if rows else range(len(columns))
    result = Table(*(columns[i] for i in kept))
    for row in rows:
        # `Text`, because a string would be read as rich's markup.
        result.add_row(*(Text(one_line(row[i])) for i in kept))
    return result


def _with_content(num_columns: int, rows: Sequence[Sequence[object]]) -> Sequence[int]:
    """Indices of the columns in which some row has a text."""
    return [i for i in range(num_columns) if any(str(row[i]) for row in rows)]


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows of short cells in columns, and under each row the texts that must not be cut: names to copy, messages.

    A column without any content is left out. If the columns do not fit, each cell follows its heading instead.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    below: Sequence[Sequence[object]] = ()
    """For each row the lines under it; empty ones are left out."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines of text for the available width."""
        heads, cells = self._kept()
        # `cell_len` and not `len`: East Asian characters are two columns wide, and combining marks none.
        widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
        fits = sum(widths) + len(GAP) * (len(widths) - 1) <= options.max_width
        if fits and cells:
            yield Text(_padded(heads, widths), style="bold")
        below = self.below or [()] * len(cells)
        for row, further in zip(cells, below, strict=True):
            yield Text(_padded(row, widths) if fits else _named(heads, row))
            for line in filter(str, further):
                yield from _hanging(console, options, "    ", line)

    def _kept(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells of the columns that have a content."""
        kept = _with_content(len(self.columns), self.rows)
        return [self.columns[i] for i in kept], [[one_line(row[i]) for i in kept] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and texts, a line each; a long text continues on the next line, with the same indentation."""

    pairs: Sequence[tuple[str, object]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines of text for the available width."""
        width = max((cell_len(name) for name, _ in self.pairs), default=0) + len(GAP)
        for name, text in self.pairs:
            yield from _hanging(console, options, name + " " * (width - cell_len(name)), text)


def _hanging(console: Console, options: ConsoleOptions, begin: str, text: object) -> RenderResult:
    """A text after `begin`, folded to the width; further lines are indented by the width of `begin`."""
    indent = cell_len(begin)
    for line in Text(one_line(text)).wrap(console, max(1, options.max_width - indent), overflow="fold"):
        line.rstrip()
        yield Text(begin + line.plain)
        begin = " " * indent


def _named(heads: Sequence[str], cells: Sequence[str]) -> str:
    """The cells of a row with their headings; spaces inside such a pair do not break when the line is folded."""
    named = [f"{head} {cell}" for head, cell in zip(heads, cells, strict=True) if cell]
    return GAP.join(pair.replace(" ", NO_BREAK) for pair in named)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()


def short_time(instant: object) -> str:
    """A time in UTC as `11-21 12:00`; a text that is no time is returned unchanged.

    Args:
        instant: A time in ISO 8601.
    """
    try:
        return datetime.fromisoformat(str(instant)).astimezone(UTC).strftime("%m-%d %H:%M")
    except ValueError:
        return str(instant)
