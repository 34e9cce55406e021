"""What a file says cannot move the cursor, forge a line or be taken for markup."""

import io
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
