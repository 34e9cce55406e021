"""The page of a run: well-formed, self-contained, and true to the attempts."""

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from indextts_job.report.attempts import Attempt
from indextts_job.report.page import render
from tests.support.crafted_attempts import losses, train_line
from tests.unit.test_standing import NOW, ago, row

VOID = {"meta", "line", "polyline"}


class Tree(HTMLParser):
    """Checks that tags nest; collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def attempt(number: int, begin: int, end: int, loss: Callable[[int], float] = lambda _step: 2.0) -> Attempt:
    lines = tuple(train_line(step, losses=losses(loss(step))) for step in range(begin + 10, end + 1, 10))
    return row(
        **{"number": number, "started": ago(hours=number), "node": "n<1>", "device": "NVIDIA L4"},
        **{"from_step": begin, "last_step": end, "total_steps": 400},
        **{"train_lines": lines, "train": lines[-1] if lines else None},
        **{"launched": ago(hours=1), "trained": ago(minutes=59)},
    )


def parsed(rows: list[Attempt], name: str = "run") -> Tree:
    tree = Tree()
    tree.feed(render(name, rows, NOW))
    assert tree.open == []
    return tree


def test_a_page_is_well_formed_and_asks_nobody_for_anything() -> None:
    tree = parsed([attempt(1, 0, 120), attempt(2, 100, 300)])
    assert not [tag for tag, _ in tree.seen if tag in ("script", "link", "img", "iframe")]
    assert not [names for _, names in tree.seen if {"src", "href"} & names.keys()]
    assert sum(tag == "svg" for tag, _ in tree.seen) == 6
    assert sum("band" in (names.get("class") or "") for _, names in tree.seen) == 2 * 6


def test_names_are_text_not_markup() -> None:
    page = render("<script>alert(1)</script>", [attempt(1, 0, 20)], NOW)
    assert "<script" not in page
    assert "n&lt;1&gt;" in page


def test_what_was_done_again_is_drawn_once() -> None:
    rows = [attempt(1, 0, 120, lambda step: 70.0 if step > 100 else 2.0), attempt(2, 100, 200)]
    page = render("run", rows, NOW)
    assert ">60<" not in page  # a tick that such a point would need


@pytest.mark.parametrize("rows", [[attempt(1, 0, 0)], [attempt(1, 0, 10)], [attempt(1, 0, 5000)]])
def test_short_and_long_runs_have_a_page(rows: list[Attempt]) -> None:
    page = render("run", rows, NOW)
    assert len(page) < 200_000
    parsed(rows)
