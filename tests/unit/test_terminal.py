"""What a file says cannot move the cursor, forge a line or be taken for markup."""

import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job import terminal

HARMLESS = re.compile(r"[^\S\n\t\v\f\r\x1c-\x1f\x85\u2028\u2029]|[\u200c\u200d]")
"""Spaces of all widths, and joiners."""


@given(st.text())
def test_one_line_is_one_line_without_controls(text: str) -> None:
    shown = terminal.one_line(text)
    assert len(shown.splitlines()) <= 1
    assert HARMLESS.sub("", shown).isprintable()


@given(st.text())
def test_lines_keep_their_own_breaks_only(text: str) -> None:
    shown = terminal.lines(text)
    assert HARMLESS.sub("", shown.replace("\n", "").replace("\t", "")).isprintable()
    assert shown.count("\n") == text.count("\n")


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "a\rerror: forged", "\u202eabc", "\ud800", "x\u2028error: y"])
def test_controls_are_spelled_out(text: str) -> None:
    assert terminal.one_line(text).isprintable()


def test_ordinary_text_of_any_script_stays() -> None:
    text = "ሰላም 世界 naïve 🎉"
    assert terminal.one_line(text) == terminal.lines(text) == text


def test_cells_are_no_markup_and_empty_columns_are_left_out() -> None:
    stream = io.StringIO()
    rows = [["[red]x[/]", "", "\x1b[31mnode"]]
    terminal.console(stream).print(terminal.table(["name", "empty", "node"], rows))
    shown = stream.getvalue()
    assert "[red]x[/]" in shown
    assert "empty" not in shown
    assert "\\x1b[31mnode" in shown


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


NAME = "step-00001000-attempt-0002-from-00000400-best-final.json"


def shown_at(width: int, listing: terminal.Listing, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines on a terminal of so many columns, without colours."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    terminal.console(stream).print(listing)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in stream.getvalue().splitlines()]


def test_a_listing_shows_names_and_numbers_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("step", "epoch", "empty", "created (UTC)", "size")
    rows = [(1000, "1.25", "", "11-21 12:00", "1.5 GiB"), (50, "0.06", "", "11-20 09:00", "1.5 GiB")]
    listing = terminal.Listing(columns, rows, [(NAME, ""), (NAME, "a problem")])
    assert shown_at(80, listing, monkeypatch) == [
        "step  epoch  created (UTC)  size",
        "1000  1.25   11-21 12:00    1.5 GiB",
        f"    {NAME}",
        "50    0.06   11-20 09:00    1.5 GiB",
        f"    {NAME}",
        "    a problem",
    ]


def test_a_listing_that_does_not_fit_names_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = tuple(f"column {letter}" for letter in "abcdefgh")
    rows = [tuple(f"{number}23456789" for number in range(8))]
    lines = shown_at(80, terminal.Listing(columns, rows), monkeypatch)
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(lines).replace("\u00a0", " ")
    for column, value in zip(columns, rows[0], strict=True):
        assert f"{column} {value}" in text


def test_a_long_line_below_a_row_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_at(40, terminal.Listing(("a",), [(1,)], [("x" * 90,)]), monkeypatch)
    assert "".join(line.strip() for line in lines[2:]) == "x" * 90


def test_wide_letters_stay_in_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_at(80, terminal.Listing(("name", "n"), [("\u4e16\u754c", 1), ("ab", 2)]), monkeypatch)
    assert lines[1:] == ["\u4e16\u754c  1", "ab    2"]


def test_times_are_short_and_in_one_zone() -> None:
    assert terminal.short_time("2026-11-21T12:00:09.123+00:00") == "11-21 12:00"
    assert terminal.short_time("2026-11-21T14:30:00+02:30") == "11-21 12:00"
    assert terminal.short_time("2026-11-21T12:00:00Z") == "11-21 12:00"
    assert terminal.short_time("") == ""
    assert terminal.short_time("soon") == "soon"


@pytest.mark.parametrize("target", ["/dev/full", "reader gone"])
def test_a_line_that_nobody_can_read_ends_nothing(target: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(os.open("/dev/full", os.O_WRONLY) if target == "/dev/full" else os.dup(writer), "w") as stream:
        terminal.say("one", stream)
        terminal.say("two", stream)
    os.close(writer)
    terminal.say("three", stream)  # closed by now
