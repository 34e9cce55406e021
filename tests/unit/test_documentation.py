"""The documentation says what the program says, names what is there, and gives commands that exist."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from indextts_job import troubleshooting
from indextts_job.cli import build_parser
from indextts_job.config import RunConfig, flatten
from indextts_job.legacy import flags
from indextts_job.troubleshooting import ENTRIES, PAGE, entry_of
from launch.cli import build_parser as build_launcher
from tests.support.documented import DOCS, TABLES, entries, with_table
from tests.support.warm_parent import REPOSITORY

PAGES = sorted(
    [
        *DOCS.glob("*.md"),
        *(REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
        *(REPOSITORY / folder / "README.md" for folder in ("slurm", "k8s", "image")),
    ]
)
_KEY = re.compile(
    r"`((?:checkpoint|data|hardware|inputs|optimizer|preemption|recipe|report|resume|schedule|storage|"
    r"validation)\.[a-z_]+)"
)


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@cache
def messages() -> str:
    """All texts in the program, values in them left out."""
    texts = []
    for folder in ("indextts_job", "launch"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path == Path(troubleshooting.__file__):
                continue  # it repeats the page
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if id(node) in docstrings:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_and_take_their_arguments(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    for line in re.split(r"\n|&&|\|", blocks):
        words = shlex.split(line, comments=True)
        if not words or words[0] not in ("indextts-job", "indextts-launch"):
            continue
        if words[0] == "indextts-launch":
            given = words[1:].index("--") + 1 if "--" in words else len(words)
            build_launcher().parse_args(words[1:given])
        else:
            _, unknown = build_parser().parse_known_args(flags.normalise(words[1:]))
            assert not unknown, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_are_keys(page: Path) -> None:
    known = flatten(RunConfig().to_json()).keys()
    for key in _KEY.findall(page.read_text(encoding="utf-8")):
        assert key in known, key


def test_messages_of_the_troubleshooting_page_are_real() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and " | " in line]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 25
    missing = [text for text in quoted if text not in messages()]
    assert missing == []


def test_a_message_leads_to_its_entry_on_the_page() -> None:
    assert entries() == ENTRIES, "make goldens"
    assert (REPOSITORY / PAGE).is_file()
    assert entry_of("unknown key schedule.max_step.") == f" More in {PAGE}#unknown-key"
    assert entry_of("the base checkpoint is missed: unknown key x") == f". More in {PAGE}#unknown-key"
    assert entry_of("lost the others: no rank answers").endswith("#lost-rank")
    assert entry_of("none of its checkpoints") == ""  # the other half of the message is missing
    assert entry_of("") == ""


@pytest.mark.parametrize(("document", "marker"), TABLES.items())
def test_tables_are_those_of_the_code(document: str, marker: str) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    assert text == with_table(text, marker), "make goldens"


def test_every_promise_names_tests_that_exist() -> None:
    page = (DOCS / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| I\d ", line)]
    assert len(rows) == 8
    for row in rows:
        tests = re.findall(r"`((?:tests|bench)/[^`]+)`", row)
        assert tests
        for path in tests:
            assert (REPOSITORY / path).exists(), path
