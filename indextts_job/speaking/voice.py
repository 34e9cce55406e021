"""The model of a checkpoint, ready to speak, and audio from the published package in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from indextts_job.checkpoint.values import VocabularyRecord
from indextts_job.errors import ConfigError
from indextts_job.model.config import GPTConfig
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.versions import ModelVersion
from indextts_job.model.vocabulary import Vocabulary

LONGEST_S = 3600
"""Limit for the published package, which loads gigabytes first."""
SHOWN_CHARACTERS = 2000
# It calls the package's public class, and needs nothing of this project: the package may have another environment.
_PROGRAM = """
import importlib, importlib.metadata, json, sys
given = json.load(sys.stdin)
module = importlib.import_module(given["module"])
voice = module.IndexTTS2(cfg_path=given["config"], model_dir=given["folder"])
for text, path in given["texts"]:
    voice.infer(spk_audio_prompt=given["prompt"], text=text, output_path=path, **given["more"])
try:
    release = importlib.metadata.version(given["module"].partition(".")[0])
except importlib.metadata.PackageNotFoundError:
    release = "unknown"
print("\\n" + json.dumps({"module": given["module"], "file": module.__file__, "version": release}))
"""


def published_voice(tensors: Mapping[str, Tensor], vocabulary: VocabularyRecord, config: GPTConfig) -> UnifiedVoice:
    """A model with the tensors of an export, without dropout.

    Args:
        tensors: By their published names; those that the model does not build are left out.
        vocabulary: Sizes of the text tables.
        config: Sizes of the model.
    """
    model = UnifiedVoice(config, Vocabulary(vocabulary.pieces, vocabulary.pieces), 0.0)
    own = model.state_dict()
    model.load_state_dict({name: value.to(own[name].dtype) for name, value in tensors.items() if name in own})
    return model.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What the published package is to speak."""

    folder: Path
    """The export, completed by the other files of a release."""
    prompt: Path
    """Audio of the voice."""
    texts: Sequence[tuple[str, Path]]
    """Texts, and the files to write."""
    language: str
    version: ModelVersion


def complete_export(folder: Path, release: Path) -> None:
    """Link the files of a release that an export does not hold into its folder.

    Raises:
        ConfigError: There is no such release.
    """
    if not release.is_dir():
        raise ConfigError(f"--release {release}: no such folder. Give the checkpoints folder of the release.")
    for path in release.iterdir():
        target = folder / path.name
        if not target.exists():
            target.symlink_to(path.resolve())


def record(what: Recording, python: str = sys.executable) -> dict[str, Any]:
    """Let the published package speak; returns import name, file and version of what spoke.

    Args:
        what: Texts and voice.
        python: The interpreter that has the package.

    Raises:
        ConfigError: The package is not there, or it failed; with the end of its output.
    """
    given = {
        "module": "indextts.infer_v2_5" if what.version.language_rows else "indextts.infer_v2",
        "config": str(what.folder / "config.yaml"),
        "folder": str(what.folder),
        "prompt": str(what.prompt),
        "texts": [(text, str(path)) for text, path in what.texts],
        "more": {"lang": what.language} if what.version.language_rows else {},
    }
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=True,
            timeout=LONGEST_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error)[-SHOWN_CHARACTERS:]
        raise ConfigError(
            f"the published package did not speak ({given['module']} by {python}): {said}. Install it where "
            "--python points, and name its checkpoints folder with --release; without --prompt only codes are spoken."
        ) from error
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
