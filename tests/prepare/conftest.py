"""Voices, encoders and a base model, once for all tests of a process; tests do not change them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.voices import Voices

Run = Callable[..., int]


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Voices:
    pytest.importorskip("soundfile", reason="pip install -e '.[prepare]'")
    from tests.support.voices import make_voices

    return make_voices(tmp_path_factory.mktemp("voices"))


@pytest.fixture(scope="session")
def voices_2_5(tmp_path_factory: pytest.TempPathFactory) -> Voices:
    from indextts_job.model.versions import V2_5
    from tests.support.voices import make_voices

    return make_voices(tmp_path_factory.mktemp("voices-2-5"), V2_5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command with a configuration; returns its exit code."""
    from indextts_job.cli import main

    def command(settings: dict[str, Any], *arguments: str) -> int:
        path = tmp_path / "prepare.yaml"
        path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        return main(["prepare", str(path), "--worker", "a", *arguments])

    return command
