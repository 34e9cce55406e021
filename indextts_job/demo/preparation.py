"""The demo of preparing: synthetic voices → WAV files → a dataset, in spite of two kills → a model that learns."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from rich.console import Console

from indextts_job.demo.stage import Headings, command, demand_own_folder, shown, sparkline
from indextts_job.demo.tiny_encoders import make_encoders
from indextts_job.demo.world import WORDS, World, WorldSize, make_world
from indextts_job.errors import EXIT_OK, EXIT_SOFTWARE, ConfigError, IndexTTSJobError
from indextts_job.model.versions import ModelVersion
from indextts_job.prepare.claims import FOLDER as CLAIMS
from indextts_job.prepare.claims import owner_of
from indextts_job.prepare.unit_store import FOLDER as UNITS
from indextts_job.report.journal import EVENTS
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import joined, pause

ESPEAK = "espeak-ng"
VOICES = {"lemlem": "am+f2", "dawit": "am+m3", "hana": "am+f4"}
"""Speakers, and the voices of espeak-ng that play them."""
CLIPS = 24
WORDS_EACH = (5, 8)
UNIT = 2
"""Utterances of a unit: small, so that kills fall between units and into them."""
STOP_AFTER_UNITS, KILL_AFTER_UNITS = 3, 7
FELL = 0.95
"""The last loss has to be below this share of the first: codes of random encoders hold little to learn."""
NOISE = 3e-4
"""Level of the noise that is added: a synthetic voice has digital silence, a recording never has."""


@dataclass(frozen=True, slots=True)
class _Stop:
    """A signal that a worker gets once so many units are finished."""

    after_units: int
    number: signal.Signals


STOPS = (_Stop(STOP_AFTER_UNITS, signal.SIGTERM), _Stop(KILL_AFTER_UNITS, signal.SIGKILL))


def run_demo(folder: Path, version: ModelVersion) -> int:
    """Run the demo with real processes and real signals.

    Args:
        folder: Working folder; must be new, or the folder of an earlier demo, which is removed.
        version: Version of the model.

    Returns:
        0 when a model learns from the prepared dataset, otherwise 70.

    Raises:
        ConfigError: espeak-ng is not installed.
    """
    if shutil.which(ESPEAK) is None:
        raise ConfigError(
            f"{ESPEAK} is not installed, and it speaks in this demo. On Debian: apt-get install {ESPEAK}."
        )
    console = Console(highlight=False, soft_wrap=True)
    demand_own_folder(folder)
    heading = Headings(console)
    heading(f"{CLIPS} clips of {len(VOICES)} Amharic voices of {ESPEAK}, and small random encoders of {version}")
    world = make_world(folder / "model", WorldSize(samples=2, validation_samples=2, version=version))
    _speak(folder)
    settings = _write_settings(folder, world, version)
    console.print(f"            {settings}: the configuration of the preparation")
    heading(
        f"Prepare: SIGTERM after {STOP_AFTER_UNITS} units (the node is wanted back), SIGKILL after {KILL_AFTER_UNITS} "
        "(the node is gone); the launcher starts the worker again"
    )
    storage = open_storage(str(folder / "data"))
    disturber = threading.Thread(target=_disturb, args=(storage,), daemon=True)
    disturber.start()
    _demand(shown(console, _launched("--command", "prepare", "--", str(settings))), "the preparation")
    joined(disturber, math.inf)
    heading("Train on it")
    _demand(shown(console, _launched("--", str(_write_run(folder, world)))), "the training")
    heading("Did it learn?")
    return _verdict(console, folder)


def _speak(folder: Path) -> None:
    """Write the clips, and their manifest."""
    (folder / "audio").mkdir(parents=True)
    random = np.random.default_rng(7)
    lines = []
    for number in range(CLIPS):
        name, voice = list(VOICES.items())[number % len(VOICES)]
        text = " ".join(random.choice(WORDS, random.integers(*WORDS_EACH, endpoint=True)))
        path = folder / f"audio/{name}_{number:03d}.wav"
        subprocess.run([ESPEAK, "-v", voice, "-s", "150", "-w", str(path), text], check=True)
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples + NOISE * random.normal(size=len(samples)), rate)
        record = {"id": f"{name}-{number:03d}", "audio": f"audio/{path.name}", "text": text, "speaker": name}
        lines.append(
            json.dumps({**record, "language": "am", "duration": round(len(samples) / rate, 4)}, ensure_ascii=False)
        )
    (folder / "voices.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_settings(folder: Path, world: World, version: ModelVersion) -> Path:
    document = {
        "output": str(folder / "data"),
        "manifests": [str(folder / "voices.jsonl")],
        "model": {
            "config": str(world.model_config),
            "base_checkpoint": str(world.base_checkpoint),
            "tokenizer": str(world.tokenizer),
        },
        "encoders": make_encoders(folder / "encoders", version).settings(),
        "validation": {"ratio": 0.15},
        "unit": UNIT,
        "device": "cpu",
    }
    return _written(folder / "prepare.yaml", document)


def _write_run(folder: Path, world: World) -> Path:
    document = {
        "run": str(folder / "run"),
        "inputs": {
            "model_config": str(world.model_config),
            "base_checkpoint": str(world.base_checkpoint),
            "tokenizer": str(world.tokenizer),
        },
        "data": {
            "train_manifests": [str(folder / "data/train.index.safetensors")],
            "validation_manifests": [str(folder / "data/val.index.safetensors")],
        },
        "recipe": {"global_batch_samples": 8},
        "schedule": {"learning_rate": 3e-3, "warmup_steps": 10, "epochs": 8},
        "validation": {"interval_steps": 25},
        "checkpoint": {"interval_steps": 0},
        "report": {"log_interval_steps": 8},
    }
    return _written(folder / "run.yaml", document)


def _written(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _launched(*arguments: str) -> list[str]:
    # With the launcher, as a user would: it starts again what was stopped and what was killed.
    return [sys.executable, "-m", "launch", "local", *arguments]


def _demand(code: int, what: str) -> None:
    if code != EXIT_OK:
        raise IndexTTSJobError(f"{what} ended with {code}; its output is above.")


def _disturb(storage: RunStorage) -> None:
    """Do what a spot node does: stop one worker, and kill its successor."""
    for stop in STOPS:
        while len(storage.list(UNITS)) < stop.after_units:
            pause(0.002)
        while not (pid := _worker(storage)):
            pause(0.002)
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, stop.number)


def _worker(storage: RunStorage) -> int:
    """Process id of the worker that has a claim; 0 while there is none."""
    for name in storage.list(CLAIMS):
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            if pid := owner_of(storage.read(f"{CLAIMS}/{name}"))[1]:
                return pid
    return 0


def _verdict(console: Console, folder: Path) -> int:
    summary = json.loads((folder / "data/prepared.json").read_text(encoding="utf-8"))
    losses = _losses(folder / "run" / EVENTS)
    learned = losses[-1] < FELL * losses[0]
    made = len(open_storage(str(folder / "data")).list(UNITS))
    rows = [
        ("units", f"{made} made, each once, by workers of which two were stopped"),
        ("utterances", f"{summary['taken']} taken, {summary['refused']} refused, {summary['pairs']['train']} pairs"),
        ("loss", f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}"),
    ]
    for name, text in rows:
        console.print(f"  {name:<12} {text}")
    program = command("indextts-job")
    conclusion = "The model learns from prepared audio." if learned else "THE LOSS DID NOT FALL: this is a defect."
    console.print(
        f"\n  [bold]{conclusion}[/]\n"
        f"  Look around:  {program} status {folder / 'data'}\n"
        f"                {program} status {folder / 'run'}"
    )
    return EXIT_OK if learned else EXIT_SOFTWARE


def _losses(journals: Path) -> list[float]:
    """Code loss of the log lines of all attempts."""
    events = [json.loads(line) for path in sorted(journals.iterdir()) for line in path.read_text("utf-8").splitlines()]
    return [event["losses"]["mel_loss"] for event in events if event["event"] == "TrainLine"]
