"""One audio file: decoded by libsndfile, mixed to one channel, resampled to 16 kHz; or refused by name.

Nothing is made louder, trimmed or filtered, because inference does none of it. What is suspicious is reported.
"""

import contextlib
import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.errors import ConfigError, DataError
from indextts_job.prepare.frames import SAMPLE_RATE
from indextts_job.prepare.loudness import levels_of, rms_of
from indextts_job.prepare.mpeg import with_length
from indextts_job.prepare.records import Levels
from indextts_job.prepare.resample import HIGHEST_RATE, resampled
from indextts_job.storage import files

Samples = npt.NDArray[np.float32]
LARGEST_FILE_BYTES = 2**31
NOT_FOUND = "file not found"
"""The reason of a file that is not there."""
UNKNOWN_SIZE = 0x7FFF0000
"""Sizes in a WAV header from here on say that it was not known: ffmpeg writes 0xFFFFFFFF, espeak-ng 0x7FFFF000."""
CANCELLED_RATIO = 0.05
"""The mean of channels that is quieter than this share of the channels themselves has lost the voice."""
QUIETEST_DBFS = -60.0
FULL_SCALE_DB = -200.0
"""Level of complete silence, whose logarithm does not exist."""


class RefusedAudioError(Exception):
    """An audio file that cannot be used; the message is the reason."""


class MissingAudioError(RefusedAudioError):
    """There is no such file."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip ready for the encoders."""

    samples: Samples
    """[samples] at 16 kHz."""
    sha256: str
    """Of the audio file."""
    sample_rate: int
    """Of the audio file."""
    seconds: float
    levels: Levels


def read_clip(url: str, min_seconds: float, max_seconds: float) -> Clip:
    """Read one clip.

    Args:
        url: Path or URL.
        min_seconds: Least duration.
        max_seconds: Largest duration.

    Raises:
        RefusedAudioError: The file is bad, or there is none.
        AccessRefusedError: The file may not be read.
        UnavailableError: The storage cannot be reached; a file that cannot be reached is never a bad one.
    """
    try:
        content = files.read_bytes(url, LARGEST_FILE_BYTES)
    except FileNotFoundError:
        raise MissingAudioError(NOT_FOUND) from None
    except (DataError, ConfigError) as error:  # no regular file, too large, or no possible path
        raise RefusedAudioError(str(error)) from None
    return clip_of(content, min_seconds, max_seconds)


def clip_of(content: bytes, min_seconds: float, max_seconds: float) -> Clip:
    """A clip from the bytes of its file; arguments and errors as in `read_clip`."""
    if not content:
        raise RefusedAudioError("the file is empty")
    _demand_whole(content)
    channels, rate = _decoded(content, (min_seconds, max_seconds))
    seconds = len(channels) / rate
    _demand_duration(seconds, min_seconds, max_seconds)
    if not np.isfinite(channels).all():
        raise RefusedAudioError("holds samples that are not finite")
    mono = channels.mean(axis=1, dtype=np.float64)
    _demand_loud(mono, channels)
    return Clip(
        samples=resampled(mono, rate, SAMPLE_RATE).astype(np.float32),
        sha256=hashlib.sha256(content).hexdigest(),
        sample_rate=rate,
        seconds=round(seconds, 6),
        levels=levels_of(mono, rate),
    )


def _decoded(content: bytes, limits: tuple[float, float]) -> tuple[npt.NDArray[np.float32], int]:
    """Samples [frames, channels] and their rate.

    Args:
        content: Content of the file.
        limits: Least and largest duration. A file whose header says that it is much longer is not decoded: a compressed
            one of some megabytes may hold gigabytes of samples.
    """
    library = soundfile_library()
    try:
        with _opened(library, content) as file:
            rate, frames = int(file.samplerate), int(file.frames)
            if not 0 < rate <= HIGHEST_RATE:
                raise RefusedAudioError(f"{frames} samples at {rate} Hz, expected a clip")
            if frames > limits[1] * rate:
                _demand_duration(frames / rate, *limits)
            samples = file.read(dtype="float32", always_2d=True)
    except (library.LibsndfileError, RuntimeError) as error:
        # The text begins with the address of an object in memory, which differs each time; records must not.
        raise RefusedAudioError(f"not decodable: {str(error).rpartition('>: ')[2].strip().rstrip('.')}") from None
    if not len(samples):
        raise RefusedAudioError("decodes to no samples")
    if len(samples) < frames:
        raise RefusedAudioError(f"decodes to {len(samples)} samples, its header says {frames}")
    return samples, rate


def _opened(library: Any, content: bytes) -> Any:  # noqa: ANN401  # the library has no types
    """The file, with the length that it has."""
    file = _recognised(library, content)
    if file.format != "MP3" or file.subtype != "MPEG_LAYER_III":
        return file
    file.close()
    try:
        return library.SoundFile(io.BytesIO(with_length(content)))
    except ValueError as error:
        raise RefusedAudioError(f"its length is not known: {error}. Encode it again") from None


def _recognised(library: Any, content: bytes) -> Any:  # noqa: ANN401  # the library has no types
    try:
        return library.SoundFile(io.BytesIO(content))
    except library.LibsndfileError:
        # A recording that begins inside of a frame is not recognised.
        with contextlib.suppress(ValueError):
            return library.SoundFile(io.BytesIO(with_length(content)))
        raise


def soundfile_library() -> Any:  # noqa: ANN401  # the library has no types
    """The library soundfile.

    Raises:
        ConfigError: It is not installed, or libsndfile is missing.
    """
    try:
        import soundfile  # noqa: PLC0415  # an extra
    except (ImportError, OSError) as error:  # OSError: the package without libsndfile
        raise ConfigError(
            f"audio is decoded by soundfile, which is not usable here ({error}). Install it: pip install "
            "'indextts-job[prepare]'."
        ) from error
    return soundfile


def _demand_whole(content: bytes) -> None:
    """Refuse a WAV file that ends before its data chunk does: libsndfile decodes what is there without a word."""
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE" or content[:4] == b"RF64":
        return
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] == b"data":
            # Programs that write to a pipe cannot know the size, and leave 0 or nearly the largest number.
            if size < UNKNOWN_SIZE and at + 8 + size > len(content):
                raise RefusedAudioError(f"has {len(content)} bytes, its header says {at + 8 + size}")
            return
        at += 8 + size + size % 2


def _demand_duration(seconds: float, least: float, most: float) -> None:
    if not least <= seconds <= most:
        raise RefusedAudioError(f"lasts {seconds:.2f} s, expected {least:g} to {most:g} s")


def _demand_loud(mono: npt.NDArray[np.float64], channels: npt.NDArray[np.float32]) -> None:
    alone, together = rms_of(channels), rms_of(mono)
    if alone > 0 and together < CANCELLED_RATIO * alone and channels.shape[1] > 1:
        raise RefusedAudioError("its channels cancel each other: one is the other with the opposite sign")
    level = 20 * math.log10(together) if together else FULL_SCALE_DB
    if level < QUIETEST_DBFS:
        raise RefusedAudioError(f"its level is {level:.0f} dBFS, expected at least {QUIETEST_DBFS:.0f}")
