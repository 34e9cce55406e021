"""All encoders of a preparation, and the arrays that they make of clips.

float32 without TF32 and without autocast: a code changes where features move by 1e-4. Only w2v-BERT sees clips of
different lengths at a time; all else runs clip by clip. So the arrays of a clip depend on no other clip, and on the
batch by rounding alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts_job.errors import ConfigError, DataError, DeviceMemoryError
from indextts_job.model.config import CONFORMER_INPUT_WIDTH, GPTConfig
from indextts_job.model.fingerprint import fingerprint
from indextts_job.model.versions import ModelVersion
from indextts_job.prepare.config import EncoderFiles
from indextts_job.prepare.encoders.campplus import CamPPlus
from indextts_job.prepare.encoders.codec import DECODING, CodecEncoder, codec_sizes
from indextts_job.prepare.encoders.semantic import Semantic, load_semantic
from indextts_job.prepare.encoders.voice import ConditioningEncoders, load_campplus, load_conditioning_encoders
from indextts_job.prepare.encoders.weights import load_strictly, read_tensors, shapes_of
from indextts_job.prepare.frames import CONDITION_SAMPLES, even, frames_of
from indextts_job.redaction import redacted

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The arrays of one clip."""

    codes: npt.NDArray[np.int32]
    condition: npt.NDArray[np.float32]
    """[32, dim], or [192] for 2.5."""
    emotion: npt.NDArray[np.float32]
    """[dim]."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """A stretch of a clip that w2v-BERT sees."""

    clip: int
    samples: Samples
    """With an even number of frames."""
    codes: bool
    """Whether the codes are made of it."""
    voice: bool
    """Whether condition and emotion are made of it."""

    @property
    def frames(self) -> int:
        """Frames that w2v-BERT sees, 50 a second."""
        return frames_of(len(self.samples)) // 2


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoders of one model."""

    model: GPTConfig
    """In the version of its checkpoint."""
    semantic: Semantic
    codec: CodecEncoder
    conditioning: ConditioningEncoders
    campplus: CamPPlus | None
    fingerprints: dict[str, str]
    """SHA-256 of the tensors of each encoder that are used."""

    def encode(self, clips: Sequence[Samples], budget: int, check: Callable[[], object]) -> list[Encoded]:
        """The arrays of clips.

        Args:
            clips: [samples] each, at 16 kHz.
            budget: Frames that w2v-BERT sees at a time.
            check: Called between batches and clips; may raise.

        Returns:
            In the order of the clips.

        Raises:
            DeviceMemoryError: A single clip does not fit the memory of the device.
        """
        codes: dict[int, Tensor] = {}
        voices: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.inference_mode():
            for one, hidden in self._hidden(_passes(clips), budget, check):
                check()
                if one.codes:
                    codes[one.clip] = self.codec(hidden[None])[0]
                if one.voice:
                    voices[one.clip] = self._condition(clips[one.clip], hidden), self.conditioning.emotion(hidden)
            return [_encoded(codes[clip], *voices[clip]) for clip in range(len(clips))]

    def _condition(self, samples: Samples, hidden: Tensor) -> Tensor:
        if self.campplus is None:
            return self.conditioning.condition(hidden)
        # All of its frames, as inference has them: CAMPPlus takes no pairs of frames.
        vector: Tensor = self.campplus(torch.from_numpy(samples[:CONDITION_SAMPLES]).to(hidden))
        return vector

    def _hidden(
        self, passes: Sequence[_Pass], budget: int, check: Callable[[], object]
    ) -> Iterator[tuple[_Pass, Tensor]]:
        for batch in batches([one.frames for one in passes], budget):
            check()
            yield from self._of_batch([passes[place] for place in batch])

    def _of_batch(self, batch: Sequence[_Pass]) -> list[tuple[_Pass, Tensor]]:
        """Hidden states of a batch; where memory runs out, of its halves one after the other."""
        try:
            return list(zip(batch, self.semantic([one.samples for one in batch]), strict=True))
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise DeviceMemoryError(
                    f"a clip of {len(batch[0].samples) / 16_000:.0f} s does not fit the device's memory. Lower "
                    "audio.max_seconds, or use a device with more memory."
                ) from error
        # Behind the handler: the error holds on to the tensors of the batch until it is gone.
        middle = len(batch) // 2
        return self._of_batch(batch[:middle]) + self._of_batch(batch[middle:])


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut clips into batches whose padded size is within a budget, long ones first; a longer clip stands alone.

    Args:
        lengths: Length of each.
        budget: Largest product of the number of clips and the longest of them.

    Yields:
        Places of the clips of a batch.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        # The first one of a batch is its longest.
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _passes(clips: Sequence[Samples]) -> list[_Pass]:
    passes = []
    for clip, samples in enumerate(clips):
        longer = len(samples) > CONDITION_SAMPLES
        passes.append(_Pass(clip, samples[: even(len(samples))], codes=True, voice=not longer))
        if longer:
            # Of its own: hidden states of the first 15 s of a longer clip have seen what follows.
            passes.append(_Pass(clip, samples[: even(CONDITION_SAMPLES)], codes=False, voice=True))
    return passes


def _encoded(codes: Tensor, condition: Tensor, emotion: Tensor) -> Encoded:
    return Encoded(
        codes=codes.to("cpu", torch.int32).numpy(),
        condition=condition.cpu().numpy(),
        emotion=emotion.cpu().numpy(),
    )


def load_encoders(files: EncoderFiles, checkpoint: str, model: GPTConfig, device: str) -> Encoders:
    """Read all encoders.

    Args:
        files: Their files.
        checkpoint: The base checkpoint.
        model: The model; the checkpoint tells its version.
        device: `cpu` or `cuda`.

    Raises:
        ConfigError: A file is missing, is not named though the version needs it, or is of another version.
        DataError: A file is damaged, or does not fit.
    """
    place = torch.device(device)
    _demand_exact()
    config, conditioning, of_checkpoint = load_conditioning_encoders(checkpoint, model, place)
    # Before the large files are read, and before a codec is compared with a model of the wrong version.
    if config.version != model.version:
        raise ConfigError(
            f"{redacted(checkpoint)} is of {config.version}, but the tokenizer, model.tokenizer, is one of "
            f"{model.version}. Give files of one release."
        )
    if config.version.speaker_width and not files.campplus:
        raise ConfigError(f"encoders.campplus is not set. {config.version} needs it: give campplus_cn_common.bin.")
    codec, of_codec = load_codec(files.codec, config, place)
    campplus, of_campplus = load_campplus(files.campplus, place) if config.version.speaker_width else (None, "")
    semantic = load_semantic(files.w2v_bert, files.statistics, files.hidden_state, place)
    fingerprints = {"conditioning": of_checkpoint, "codec": of_codec, **semantic.fingerprints}
    if campplus is not None:
        fingerprints["campplus"] = of_campplus
    return Encoders(config, semantic, codec, conditioning, campplus, fingerprints)


def load_codec(url: str, model: GPTConfig, device: torch.device) -> tuple[CodecEncoder, str]:
    """Read the encoder of a codec.

    Returns:
        The encoder and its fingerprint.

    Raises:
        DataError: The file is damaged, or is the codec of another model.
    """
    tensors = read_tensors(url, "semantic codec", "encoders.codec")
    where = redacted(url)
    try:
        sizes = codec_sizes(shapes_of(tensors))
    except (LookupError, ValueError) as error:
        raise DataError(f"{where}: no semantic codec ({error}). Expected {_codec_of(model.version)}.") from error
    expected = (CONFORMER_INPUT_WIDTH, model.number_codes, model.version.codes_per_second == HALF_RATE)
    found = (sizes.hidden, sizes.codes, sizes.halves_rate)
    if found != expected:
        raise DataError(
            f"{where}: a codec of width {found[0]} and {found[1]} codes at {'half' if found[2] else 'full'} rate, "
            f"expected {expected[0]} and {expected[1]} at {'half' if expected[2] else 'full'} rate. {model.version} "
            f"needs {_codec_of(model.version)}."
        )
    with torch.device("meta"):
        codec = CodecEncoder(sizes)
    used = load_strictly(codec, tensors, where, DECODING.fullmatch)
    return codec.eval().requires_grad_(requires_grad=False).to(device), fingerprint(used)


HALF_RATE = 25
"""Codes per second of a codec that halves the rate of w2v-BERT."""


def _codec_of(version: ModelVersion) -> str:
    return "codec.pth of the release" if version.speaker_width else "semantic_codec/model.safetensors of MaskGCT"


def _demand_exact() -> None:
    """Switch TF32 off in this process: it has 10 bits of mantissa, and codes change."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
