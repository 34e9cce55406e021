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
from indextts_job.errors import EXIT_CONFIG, ConfigError, IndexTTSJobError, UnavailableError
from indextts_job.model.config import GPTConfig
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.versions import ModelVersion
from indextts_job.model.vocabulary import Vocabulary

LONGEST_S = 3600
"""Limit for the published package, which loads gigabytes first."""
SHOWN_CHARACTERS = 2000
_ADVICE = (
    "Install the package where --python points, and name its checkpoints folder with --release; without --prompt only "
    "codes are spoken."
)
# It calls the package's public class, and needs nothing of this project: the package may have another environment.
_PROGRAM = """
import importlib, importlib.metadata, json, sys
given = json.load(sys.stdin)
try:
    module = importlib.import_module(given["module"])
except ImportError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(given["absent"])
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


def demand_release(release: Path) -> None:
    """Refuse a release that is not there.

    Raises:
        ConfigError: There is no such folder.
    """
    if not release.is_dir():
        raise ConfigError(f"--release {release}: no such folder. Give the checkpoints folder of the release.")


def complete_export(folder: Path, release: Path) -> None:
    """Link the files of a release that an export does not hold into its folder.

    Raises:
        ConfigError: There is no such release.
    """
    demand_release(release)
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
        ConfigError: The package is not there.
        IndexTTSJobError: It failed; with the end of its output.
        UnavailableError: It did not end in time.
    """
    given = {
        "module": "indextts.infer_v2_5" if what.version.language_rows else "indextts.infer_v2",
        "config": str(what.folder / "config.yaml"),
        "folder": str(what.folder),
        "prompt": str(what.prompt),
        "texts": [(text, str(path)) for text, path in what.texts],
        "absent": EXIT_CONFIG,
        "more": {"lang": what.language} if what.version.language_rows else {},
    }
    done = _done(python, json.dumps(given))
    if done.returncode:
        raise _failure(done, f"the published package did not speak ({given['module']} by {python})")
    missing = [str(path) for _, path in what.texts if not path.is_file()]
    if missing:
        raise IndexTTSJobError(f"the published package has ended without {', '.join(missing)}. {_end_of(done)}")
    return _told(done.stdout)


def _done(python: str, given: str) -> "subprocess.CompletedProcess[str]":
    """The program, ended in any way but by the limit of time."""
    command = [python, "-c", _PROGRAM]
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", check=False, timeout=LONGEST_S
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"the published package has not ended in {LONGEST_S} s. Speak fewer texts, or look what {python} waits for."
        ) from error
    except OSError as error:
        raise ConfigError(f"--python {python} cannot be run: {error}. {_ADVICE}") from error


def _failure(done: "subprocess.CompletedProcess[str]", what: str) -> IndexTTSJobError:
    if done.returncode == EXIT_CONFIG:
        return ConfigError(f"{what}: {_end_of(done)}. {_ADVICE}")
    return IndexTTSJobError(f"{what}, it ended with code {done.returncode}: {_end_of(done)}")


def _end_of(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stderr or done.stdout).strip()[-SHOWN_CHARACTERS:]


def _told(output: str) -> dict[str, Any]:
    """The last line of the program's output. What the package prints itself stands before it."""
    try:
        told: dict[str, Any] = json.loads(output.rstrip().rpartition("\n")[2])
    except ValueError as error:
        raise IndexTTSJobError(
            f"the published package spoke, but what it is cannot be told: {output[-SHOWN_CHARACTERS:]}"
        ) from error
    return told
