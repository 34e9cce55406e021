"""Text from files and networks on its way to a terminal: it moves no cursor, forges no line and is no markup.

Every name, id, path or message that this program did not write itself passes through here before a person sees it.
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
"""Columns of a table that no terminal limits."""
GAP, NO_BREAK = "  ", "\u00a0"


_HARMLESS = "\u200c\u200d"
"""Joiners, which many scripts and emoji need; they move nothing."""


def _visible(character: str) -> str:
    # Not printable are controls and escape sequences, what turns the direction of a line, half of a surrogate pair,
    # which no stream can encode, and line breaks that are no "\n". Wide and narrow spaces only look like spaces.
    if character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def lines(text: object) -> str:
    """A text whose own line breaks and tabs are kept; every other control character is spelled out."""
    return "".join(character if character in "\n\t" else _visible(character) for character in str(text))


def one_line(text: object) -> str:
    """A text on one line: line breaks become a space, control characters are spelled out."""
    return "".join(map(_visible, _LINE_BREAKS.sub(" ", str(text)).replace("\t", " ")))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once. When nobody can read it, the program is quiet from then on, and goes on.

    Args:
        text: The line.
        stream: Where to; standard output if it is not given.
    """
    target = stream or sys.stdout
    try:
        print(text, file=target, flush=True)
    except (OSError, ValueError):  # its terminal is closed, its disk is full, its reader has gone
        silence(target)


def silence(stream: TextIO) -> None:
    """Let everything that is written to a stream from now on go nowhere, what waits in its buffer too."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file cannot fail again
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def console(stream: TextIO | None = None) -> Console:
    """A console for tables and lines; as wide as the terminal, or wide enough where there is none."""
    target = stream or sys.stdout
    width = None if target.isatty() else WIDTH_OF_FILES
    return Console(file=target, soft_wrap=not target.isatty(), width=width, highlight=False, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of plain cells; a column without any content is left out.

    Args:
        columns: Headings.
        rows: Cells in the order of the columns.
    """
    kept = [i for i in range(len(columns)) if not rows or any(str(row[i]) for row in rows)]
    result = Table(*(columns[i] for i in kept))
    for row in rows:
        result.add_row(*(Text(one_line(row[i])) for i in kept))
    return result


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows of short cells in columns, and under each row what must be read whole: a name to copy, a message.

    A column without any content is left out. Where the columns do not fit, each cell stands behind its heading.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    below: Sequence[Sequence[object]] = ()
    """Lines of their own under each row; empty ones are left out."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines of text, for the width that there is."""
        kept = [i for i in range(len(self.columns)) if any(str(row[i]) for row in self.rows)]
        cells = [[one_line(row[i]) for i in kept] for row in self.rows]
        heads = [self.columns[i] for i in kept]
        widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
        fits = sum(widths) + len(GAP) * (len(widths) - 1) <= options.max_width
        if fits and cells:
            yield Text(_padded(heads, widths), style="bold")
        for number, row in enumerate(cells):
            if fits:
                yield Text(_padded(row, widths))
            else:
                named = [f"{head} {cell}" for head, cell in zip(heads, row, strict=True) if cell]
                yield Text(GAP.join(pair.replace(" ", NO_BREAK) for pair in named))
            for line in self.below[number] if self.below else ():
                if str(line):
                    yield from _hanging(console, options, "    ", line)


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and texts, a line each; a text that does not fit goes on below itself."""

    pairs: Sequence[tuple[str, object]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines of text, for the width that there is."""
        width = max((cell_len(name) for name, _ in self.pairs), default=0) + len(GAP)
        for name, text in self.pairs:
            yield from _hanging(console, options, name + " " * (width - cell_len(name)), text)


def _hanging(console: Console, options: ConsoleOptions, begin: str, text: object) -> RenderResult:
    """A text behind its beginning, folded where it must be, without spaces at the ends of lines."""
    indent = cell_len(begin)
    for line in Text(one_line(text)).wrap(console, max(1, options.max_width - indent), overflow="fold"):
        line.rstrip()
        yield Text(begin + line.plain)
        begin = " " * indent


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()


def short_time(instant: object) -> str:
    """A UTC time as people compare times: `11-21 12:00`. A text that is no time comes back as it is.

    Args:
        instant: In ISO 8601.
    """
    try:
        return datetime.fromisoformat(str(instant)).astimezone(UTC).strftime("%m-%d %H:%M")
    except ValueError:
        return str(instant)
