"""What may be imported where torch is not wanted: a login node checks a run, a launcher submits one."""

import subprocess
import sys

from tests.support.pure import REPOSITORY, pure_tests

WITHOUT_TORCH = (
    "launch",
    "indextts_job.cli",
    "indextts_job.commands",
    "indextts_job.config",
    "indextts_job.data",
    "indextts_job.hardware",
    "indextts_job.prepare.plan",
    "indextts_job.prepare.preparation",
    "indextts_job.prepare.run",  # and with it everything of a preparation but its encoders
    "indextts_job.preemption",
    "indextts_job.report",
    "indextts_job.simulation",
    "indextts_job.storage",
    "indextts_job.tokenizer",
)

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), name + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
        if "torch" in sys.modules:
            sys.exit(f"{found.name} imports torch")
    if "torch" in sys.modules:
        sys.exit(f"{name} imports torch")
"""


def import_all(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_commands_launchers_and_everything_that_only_looks_import_without_torch():
    import_all(WITHOUT_TORCH)


def test_what_make_quick_runs_does_not_wait_for_torch():
    files = [path.relative_to(REPOSITORY).with_suffix("") for path in pure_tests()]
    assert len(files) > 25
    import_all(("tests.conftest", *(".".join(file.parts) for file in files)))
