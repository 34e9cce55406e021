"""What `make mutants` found: killed and surviving mutants of each file, beside those known as equivalent.

mutmut leaves its verdicts and the mutated files in `mutants/`. A mutant that no test can tell from the code is listed
in `tests/mutants.md` with its reason; one that survives and is not listed there lacks a test.
"""

import ast
import difflib
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "mutants"
EQUIVALENTS = REPOSITORY / "tests/mutants.md"
SHARE = 0.95
"""Of the mutants that are not equivalent: to be killed."""
ANYWHERE = "*"
_SURVIVED, _UNTESTED, _FAILED, _UNCHECKED = 0, (5, 33), (1, 3), None
_ROW = re.compile(r"\| `(.+?)` \| `(.+?)` \| `(.*?)` \| (.+) \|")


@dataclass(frozen=True, slots=True)
class Survivor:
    """A change that no test has noticed."""

    function: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A row of the list: what stands in a line of a function, and what it may as well be."""

    function: str
    before: str
    after: str

    def explains(self, survivor: Survivor) -> bool:
        """Whether the mutant is this one: nothing but `before` became `after`, once."""
        if self.function not in (survivor.function, ANYWHERE):
            return False
        places = (match.start() for match in re.finditer(re.escape(self.before), survivor.before))
        length = len(self.before)
        return any(
            survivor.before[:place] + self.after + survivor.before[place + length :] == survivor.after
            for place in places
        )


def equivalents() -> list[Equivalent]:
    """The rows of `tests/mutants.md`; an empty cell is written as `·`."""
    rows = _ROW.finditer(EQUIVALENTS.read_text(encoding="utf-8"))
    return [Equivalent(row[1], row[2].replace("\\|", "|"), row[3].replace("·", "").replace("\\|", "|")) for row in rows]


def survivors(mutated: Path, verdicts: dict[str, int | None]) -> Iterator[Survivor]:
    """The mutants of one file that no test has killed."""
    source = mutated.read_text(encoding="utf-8")
    functions = {
        node.name: ast.get_source_segment(source, node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name
    }
    for name, verdict in verdicts.items():
        if verdict != _SURVIVED and verdict not in _UNTESTED:
            continue
        mangled = name.rpartition(".")[2]
        original = re.sub(r"__mutmut_\d+$", "__mutmut_orig", mangled)
        before, after = (functions[one].replace(f"def {one}", "def …", 1).splitlines() for one in (original, mangled))
        changed = [
            line for line in difflib.unified_diff(before, after, lineterm="", n=0) if line[:2] not in ("--", "++")
        ]
        removed, added = (
            " ".join(line[1:].strip() for line in changed if line.startswith(sign)) for sign in ("-", "+")
        )
        yield Survivor(readable(mangled), removed, added)


def readable(mangled: str) -> str:
    """`Objects.read` for mutmut's `xǁObjectsǁread__mutmut_3`, `pack` for its `x_pack__mutmut_1`."""
    name = re.sub(r"__mutmut_\d+$", "", mangled)
    return name.removeprefix("x_") if "ǁ" not in name else name.removeprefix("xǁ").replace("ǁ", ".")


@dataclass(frozen=True, slots=True)
class Result:
    """Of one file."""

    file: str
    counts: Counter[str]
    unexplained: list[Survivor]
    used: set[Equivalent]


def result_of(file: str, known: list[Equivalent]) -> Result:
    """Verdicts of one file, its survivors compared with the list."""
    verdicts = json.loads((FOLDER / f"{file}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    explained = [(one, {row for row in known if row.explains(one)}) for one in survivors(FOLDER / file, verdicts)]
    unexplained = [one for one, rows in explained if not rows]
    counts = Counter(
        mutants=len(verdicts),
        unchecked=list(verdicts.values()).count(_UNCHECKED),
        equivalent=len(explained) - len(unexplained),
        survived=len(unexplained),
    )
    counts["killed"] = sum(verdict in _FAILED for verdict in verdicts.values())
    counts["stuck"] = counts["mutants"] - counts["unchecked"] - counts["killed"] - len(explained)
    return Result(file, counts, unexplained, {row for _, rows in explained for row in rows})


def report(results: list[Result], known: list[Equivalent]) -> Iterator[str]:
    """The table, then every survivor that is not explained."""
    total = sum((result.counts for result in results), Counter[str]())
    yield f"{'':44} mutants  killed   stuck  equivalent  survived"
    for name, counts in [*((result.file, result.counts) for result in results), ("all", total)]:
        widths = (("mutants", 7), ("killed", 7), ("stuck", 7), ("equivalent", 11), ("survived", 9))
        yield f"{name:44} " + " ".join(f"{counts[what]:{width}}" for what, width in widths)
    for result in results:
        for one in result.unexplained:
            yield f"\n{result.file}: {one.function}\n  - {one.before}\n  + {one.after}"
    used = {row for result in results for row in result.used}
    for row in known:
        if row not in used:
            yield f"\nlisted and not found: {row.function}: {row.before} -> {row.after}"
    if total["unchecked"]:
        yield f"\n{total['unchecked']} were not looked at: `mutmut run` goes on where it stopped"
    yield f"\n{killed_share(results):.1%} of those that are not equivalent were killed"


def killed_share(results: list[Result]) -> float:
    """Of the mutants that are not equivalent; those that were not looked at count as survivors.

    Tests that come to no end, or use ten times their time, have noticed the mutant too.
    """
    total = sum((result.counts for result in results), Counter[str]())
    return (total["killed"] + total["stuck"]) / max(1, total["mutants"] - total["equivalent"])


def main() -> int:
    """Print what was found; 1 when too few were killed."""
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    known = equivalents()
    results = [result_of(file, known) for file in config["only_mutate"]]
    sys.stdout.write("\n".join(report(results, known)) + "\n")
    return 0 if killed_share(results) >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
