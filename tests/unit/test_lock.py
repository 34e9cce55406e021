"""The hashes that the image installs by belong to the versions that the tests run with."""

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(path: Path) -> dict[str, str]:
    pairs = re.findall(r"^([\w.-]+)==([\w.+!]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {normalised(name): version for name, version in pairs}


def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_for_each() -> None:
    path = REPOSITORY / "image/requirements.lock"
    locked, constrained = versions(path), versions(REPOSITORY / "constraints.txt")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {normalised(re.split(r"[>=<\[;]", entry)[0]) for entry in project["dependencies"]}
    assert wanted <= locked.keys(), "run make lock"
    others = {name: (version, constrained[name]) for name, version in locked.items() if name in constrained}
    assert all(locked_version == version for locked_version, version in others.values()), "run make lock"
    entries = re.split(r"^(?=\w)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


def test_the_lock_names_no_place_to_fetch_from() -> None:
    assert not re.search(
        r"https?://|--(extra-)?index-url|--find-links", (REPOSITORY / "image/requirements.lock").read_text()
    )


def test_workflows_use_what_is_in_the_repository() -> None:
    for path in (REPOSITORY / ".github/workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"run: (?:env -u CI )?make ([a-z-]+)", text):
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), (
                target
            )
        for file in re.findall(r"(image/\S+\.lock|\.ci/run)", text):
            assert (REPOSITORY / file).exists()
