"""Every command works without the packages of extras, and says what to install where it needs one."""

import subprocess
import sys

import pytest

EXTRAS = ("soundfile", "transformers", "wandb", "mlflow", "kubernetes", "gcsfs", "adlfs", "optree", "einops")
BLOCKED = """
import sys
for name in {extras!r}:
    sys.modules[name] = None  # an import of it raises ModuleNotFoundError
from indextts_job.cli import build_parser, main
from indextts_job.commands.examples import every_command
import importlib, pkgutil, indextts_job.commands as commands
for module in pkgutil.iter_modules(commands.__path__):
    importlib.import_module(f"indextts_job.commands.{{module.name}}")
import indextts_job.demo.interruptions, indextts_job.demo.forgetting, indextts_job.demo.preparation
import indextts_job.attempt.run, indextts_job.prepare.run, indextts_job.report.trackers
sys.exit(main({arguments!r}))
"""


def without_extras(*arguments: str) -> "subprocess.CompletedProcess[str]":
    source = BLOCKED.format(extras=EXTRAS, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)


def test_nothing_imports_an_extra_before_it_is_needed() -> None:
    done = without_extras("train", "--schema")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "prepare"), "indextts-job[prepare]"),
        (("train", "report.trackers=[wandb]"), "--train-manifest"),
    ],
)
def test_what_needs_one_says_so(arguments: tuple[str, ...], words: str) -> None:
    done = without_extras(*arguments)
    assert done.returncode == 78, done.stderr
    assert words in done.stderr
