"""`indextts-job init`: writes a run.yaml to start from."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
from pathlib import Path

from indextts_job import errors, terminal
from indextts_job.commands.parser import Commands
from indextts_job.commands.recipes import RECIPES


def add(commands: Commands) -> None:
    """Add the command."""
    purposes = "; ".join(f"{recipe.name}: {recipe.purpose}" for recipe in RECIPES)
    init = commands.add_parser(
        "init",
        help="write a commented run.yaml from a recipe",
        description=f"Write a run.yaml to start from. {purposes}. Paths are those of the public preprocessing: change "
        "what differs.",
    )
    init.add_argument("--recipe", choices=[recipe.name for recipe in RECIPES], default="new-language")
    init.add_argument("--model", choices=("2.0", "2.5"), default="2.5", help="version of the model (default: 2.5)")
    init.add_argument("--language", default="am", metavar="LANG", help="language of the data (default: am)")
    init.add_argument("--run", default="", help="folder or URL of the run (default: runs/LANG)")
    init.add_argument("--output", default="run.yaml", help="file to write (default: %(default)s)")
    init.set_defaults(act=_init)


def _init(given: argparse.Namespace) -> int:
    from indextts_job.commands.recipes import run_file
    from indextts_job.model.versions import VERSIONS

    version = next(version for version in VERSIONS if version.name == given.model)
    recipe = next(recipe for recipe in RECIPES if recipe.name == given.recipe)
    language = _known(given.language) if version.language_rows else given.language
    path = Path(given.output)
    if path.exists():
        raise errors.ConfigError(f"{path} exists. Give another --output; nothing is overwritten.")
    run = given.run or f"runs/{language.partition(':')[0]}"
    try:
        path.write_text(run_file(recipe, version, run, language), encoding="utf-8")
    except OSError as error:
        raise errors.ConfigError(f"--output {path}: {error.strerror}. Give another path.") from error
    terminal.say(f"{path}: next, indextts-job doctor run {path}")
    return errors.EXIT_OK


def _known(language: str) -> str:
    """A language in its canonical form."""
    from indextts_job.model.languages import language_of

    try:
        return str(language_of(language))
    except ValueError as error:
        raise errors.ConfigError(f"--language: {error}.") from error
