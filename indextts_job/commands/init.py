"""`indextts-job init`: writes a run.yaml to start from, looks for the files that it names, and says what comes next."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands

if TYPE_CHECKING:
    from indextts_job.commands.recipes import Places, Recipe
    from indextts_job.model.versions import ModelVersion

# Names and purposes of `commands.recipes.RECIPES`, which is imported later.
PATHS = {
    "run": "folder or URL of the run",
    "base_checkpoint": "gpt.pth, an export of this program, or a run",
    "model_config": "config.yaml beside it",
    "tokenizer": "tokenizer",
    "train_manifest": "pairs to train on",
    "validation_manifest": "pairs to validate on",
}
"""The files of a run.yaml, in the order in which they are asked for."""


def add(commands: Commands) -> None:
    """Add the command."""
    from indextts_job.commands.recipes import RECIPES

    purposes = "; ".join(f"{recipe.name}: {recipe.purpose}" for recipe in RECIPES)
    init = commands.add_parser(
        "init",
        help="write a commented run.yaml from a recipe",
        description=f"Write a run.yaml to start from, and look for what it names. {purposes}. On a terminal it asks "
        "for the paths that are not given; elsewhere they are those of the public preprocessing.",
    )
    init.add_argument(
        "--recipe", choices=[recipe.name for recipe in RECIPES], default="new-language", help="(default: new-language)"
    )
    init.add_argument("--model", choices=("2.0", "2.5"), default="2.5", help="version of the model (default: 2.5)")
    init.add_argument("--language", default="am", metavar="LANG", help="language of the data (default: am)")
    for name, about in PATHS.items():
        init.add_argument(f"--{name.replace('_', '-')}", default="", metavar="PATH", help=about)
    init.add_argument("--output", default="run.yaml", help="file to write (default: %(default)s)")
    init.set_defaults(act=_init)


def _init(given: argparse.Namespace) -> int:
    from indextts_job.commands.recipes import RECIPES, run_file, usual_places
    from indextts_job.model.versions import VERSIONS

    version = next(version for version in VERSIONS if version.name == given.model)
    recipe = next(recipe for recipe in RECIPES if recipe.name == given.recipe)
    language = _known(given.language, version)
    path = Path(given.output)
    if path.exists() or path.is_symlink():
        raise errors.ConfigError(f"{path} exists. Give another --output; nothing is overwritten.")
    usual = usual_places(recipe, version, language.partition(":")[0])
    places = replace(usual, **_given_or_asked(given, usual))
    _write(path, run_file(recipe, version, places, language))
    for line in _looked(path, places, version, recipe):
        terminal.say(line)
    return errors.EXIT_OK


def _known(language: str, version: "ModelVersion") -> str:
    """A language in its canonical form.

    Raises:
        ConfigError: It is none that the model, or a manifest, can name.
    """
    from indextts_job.data.manifest_source import language_pattern
    from indextts_job.model.languages import language_of

    if not version.language_rows:
        if not language_pattern(language):
            raise errors.ConfigError(f"--language is {language!r}, expected a language, for example am.")
        return language.strip()
    try:
        return str(language_of(language))
    except ValueError as error:
        raise errors.ConfigError(f"--language: {error}.") from error


def _given_or_asked(given: argparse.Namespace, usual: "Places") -> dict[str, str]:
    """The paths of the command line; on a terminal also the answers to questions."""
    chosen = {name: getattr(given, name) for name in PATHS if getattr(given, name)}
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return chosen
    for entry in fields(usual):
        if entry.name not in chosen:
            default = getattr(usual, entry.name)
            chosen[entry.name] = input(f"{PATHS[entry.name]} [{default}]: ").strip() or default
    return chosen


def _write(path: Path, text: str) -> None:
    from indextts_job.commands.config_schema import FILE, schema_text

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        path.with_name(FILE).write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise errors.ConfigError(f"--output {path}: {error.strerror}. Give another path.") from error


def _looked(path: Path, places: "Places", version: "ModelVersion", recipe: "Recipe") -> Iterator[str]:
    """What of the files is there, and the next command."""
    from indextts_job.commands.config_schema import FILE

    yield f"{path}, and {path.with_name(FILE)}, by which editors complete and check it"
    missing = []
    for name in PATHS:
        if name != "run" and not (found := _found(name, getattr(places, name), version)):
            missing.append(getattr(places, name))
        elif name != "run":
            yield f"  found    {getattr(places, name)}{found}".rstrip()
    for place in missing:
        yield f"  missing  {place}"
    if missing:
        yield "Bring what is missing, or change the paths; docs/quickstart.md says where each comes from."
    if places.tokenizer in missing and recipe.extended and not version.ranks:
        yield f"A new language: indextts-job tokenizer extend TEXTS.txt --base BPE.model --output {places.tokenizer}"
    yield f"Next: indextts-job train {path} --dry-run"


def _found(name: str, place: str, version: "ModelVersion") -> str:
    """What to say of a file that is there; empty for one that is not."""
    from indextts_job.storage import files

    try:
        there = files.exists(place)
        return (_records(place, version) if there and name.endswith("manifest") else " ") if there else ""
    except errors.IndexTTSJobError as error:
        return f": {error}"


def _records(place: str, version: "ModelVersion") -> str:
    """How many records a manifest has, in which languages."""
    from collections import Counter

    from indextts_job.data.manifest import Rules, parse_records
    from indextts_job.data.manifest_source import ManifestSource, is_manifest
    from indextts_job.storage import files

    if not is_manifest(place):
        return ", a sharded dataset"
    text = files.read_manifest(place).decode("utf-8", errors="replace")
    records = parse_records(text.splitlines(), ManifestSource(place, ""), Rules(version, self_pairs=True))
    languages = Counter(record.language or "no language" for record in records)
    return f": {len(records)} records ({', '.join(f'{name} {count}' for name, count in languages.items())})"
