"""Audio with transcripts for tests: voices of tones with a noise floor, as a recording has one, and tiny encoders."""

import io
import json
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.demo.tiny_encoders import TinyEncoders, make_encoders
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.model.versions import V2_0, ModelVersion
from indextts_job.prepare.config import PrepareConfig, prepare_config

RATE = 16_000
TEXTS = (
    "ሰላም ዓለም ቤት ውሃ እሳት መጽሐፍ ልጅ",
    "እናት አባት ወንድም እህት ፀሐይ ጨረቃ",
    "ኮከብ ተራራ ወንዝ ባህር ዛፍ አበባ ወፍ",
    "ውሻ ድመት ፈረስ ላም ዳቦ ቡና ሻይ መንገድ",
    "ከተማ ሰላም እሳት ልጅ አባት ውሃ ዓለም",
)
Signal = npt.NDArray[np.float64]


def voice(speaker: int, number: int, seconds: float = 2.2, rate: int = RATE) -> Signal:
    """A clip in the voice of a speaker: harmonics that rise and fall, and a noise floor."""
    random = np.random.default_rng([speaker, number])
    time = np.arange(round(seconds * rate)) / rate
    pitch = (90 + 35 * speaker) * (1 + 0.1 * np.sin(2 * np.pi * (1.5 + 0.1 * number) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * time + number)
    return np.asarray(0.1 * loudness * tones + 1e-3 * random.normal(size=len(time)))


def wav(samples: Signal, rate: int = RATE) -> bytes:
    """A WAV file of 16 bit; [samples] or [samples, channels]."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return content.getvalue()


@dataclass(frozen=True, slots=True)
class Voices:
    """A folder with audio and its manifest, encoders, and a base model."""

    folder: Path
    world: World
    encoders: TinyEncoders

    @property
    def manifest(self) -> Path:
        return self.folder / "voices.jsonl"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.manifest.read_text(encoding="utf-8").splitlines()]

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        self.manifest.write_text("".join(lines), encoding="utf-8")

    def settings(self, output: str | Path, **keys: object) -> dict[str, Any]:
        """A configuration, dotted keys with `__` for the dot."""
        base: dict[str, Any] = {
            "output": str(output),
            "manifests": [str(self.manifest)],
            "model": {
                "config": str(self.world.model_config),
                "base_checkpoint": str(self.world.base_checkpoint),
                "tokenizer": str(self.world.tokenizer),
            },
            "encoders": self.encoders.settings(),
            "validation": {"ratio": 0.2},
            "unit": 4,
            "batch_frames": 400,
            "device": "cpu",
            "threads": 2,
            "storage": {"retry_seconds": 0.0},
        }
        for key, value in keys.items():
            section, _, name = key.rpartition("__")
            (base.setdefault(section, {}) if section else base)[name] = value
        return base

    def config(self, output: str | Path, **keys: object) -> PrepareConfig:
        return prepare_config(self.settings(output, **keys), "test")

    def elsewhere(self, folder: Path) -> "Voices":
        """The same encoders and model with a folder of audio of its own, still empty."""
        (folder / "audio").mkdir(parents=True)
        return replace(self, folder=folder)


def add_clips(
    voices: Voices,
    count: int,
    speakers: int = 3,
    first: int = 0,
    seconds: Callable[[int], float] = lambda number: 2.1 + 0.13 * (number % 5),
) -> list[dict[str, Any]]:
    """Write clips and append their records to the manifest."""
    records = voices.records() if voices.manifest.exists() else []
    for number in range(first, first + count):
        speaker, text = number % speakers, f"{TEXTS[number % len(TEXTS)]} {TEXTS[number * 3 % 5].split()[number % 6]}"
        name = f"audio/s{speaker}_{number:03d}.wav"
        samples = voice(speaker, number, seconds(number))
        (voices.folder / name).write_bytes(wav(samples))
        records.append(
            {
                "id": f"u{number:03d}",
                "audio": name,
                "text": text,
                "speaker": f"speaker{speaker}",
                "language": "am",
                "duration": round(len(samples) / RATE, 4),
            }
        )
    voices.write(records)
    return records


def make_voices(folder: Path, version: ModelVersion = V2_0, count: int = 14) -> Voices:
    """Encoders, base model and clips; takes about two seconds."""
    size = WorldSize(samples=2, validation_samples=2, width=32, layers=2, heads=2, version=version)
    voices = Voices(folder / "voices", make_world(folder / "model", size), make_encoders(folder / "encoders", version))
    (voices.folder / "audio").mkdir(parents=True)
    add_clips(voices, count)
    return voices
