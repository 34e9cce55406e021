"""The versions of the model: everything in which they differ, on one page. Pure: reads no file, needs no torch.

Sources: `config.yaml`, `gpt/model_v2.py`, `infer_v2.py`, `infer_v2_5.py` and `utils/tokenizer.py` of the releases. The
losses and gradients of both are compared with values from the releases' own module (`tests/golden/`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from indextts_job.errors import DataError, findings_message

Shape = tuple[int, ...]
OUR_SECTION, MODEL_VERSION = "indextts_job", "model_version"
"""Section of a config.yaml that is ours, and its key for the version, which no release has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """The facts of one version."""

    name: str
    conditioning_rows: int
    """Rows of a packed sample in front of the text."""
    speaker_latents: int | None
    """Rows of a speaker's conditioning array, each as wide as the model; None where it is one vector."""
    speaker_width: int | None
    """Values of a speaker vector, which the model projects; None where there are latents."""
    language_rows: int
    """Rows of the language table, of which every text row gets one; 0 = none."""
    dropped_text_ids: tuple[int, ...]
    """Ids that are dropped inside a text, because inference does so: they are start and stop, and ordinary pieces."""
    codes_per_second: int
    """Rate of the semantic codec."""
    own_keys: tuple[str, ...]
    """Beginnings of the checkpoint's keys that no other version has."""
    conditioning_encoder: bool
    """Whether the checkpoint carries the encoder of the speaker's conditioning."""
    ranks: bool
    """Whether the tokenizer is a file of byte-pair ranks (tiktoken); otherwise it is a SentencePiece model."""
    tokenizer_file: str
    """Name under which inference looks for the tokenizer."""
    tokenizer_type: str | None
    """`dataset.tokenizer_type` of config.yaml."""
    needed_files: tuple[str, ...]
    """Files of the release that inference needs beside an export, apart from those that config.yaml names."""

    def speaker_shape(self, model_dim: int) -> Shape:
        """Shape of a sample's conditioning array."""
        return (self.speaker_latents, model_dim) if self.speaker_latents else (self.speaker_width or 0,)

    def __str__(self) -> str:
        return f"IndexTTS-{self.name}"


V2_0 = ModelVersion(
    name="2.0",
    conditioning_rows=34,  # the latents and the two speed rows
    speaker_latents=32,  # UnifiedVoice's default `condition_num_latent`, which config.yaml does not set
    speaker_width=None,
    language_rows=0,
    dropped_text_ids=(),
    codes_per_second=50,
    own_keys=("conditioning_encoder.", "perceiver_encoder.", "speed_emb."),
    conditioning_encoder=True,
    ranks=False,
    tokenizer_file="bpe.model",
    tokenizer_type=None,
    needed_files=(),
)
V2_5 = ModelVersion(
    name="2.5",
    conditioning_rows=3,  # the projected speaker vector, and two rows of zeros
    speaker_latents=None,
    speaker_width=192,  # CAMPPlus
    language_rows=107,
    dropped_text_ids=(0, 1),
    codes_per_second=25,
    own_keys=("spk_emb_proj.", "lang_embedding."),
    conditioning_encoder=False,
    ranks=True,
    tokenizer_file="multilingual_zh_ja_yue_char_del.tiktoken",
    tokenizer_type="tiktoken",
    needed_files=("codec.pth",),
)
VERSIONS = (V2_0, V2_5)
TEXT_TOKENS_2_5 = 60509
"""`gpt.number_text_tokens` of the released 2.5."""


def corrected(document: Mapping[str, Any], version: ModelVersion) -> Mapping[str, Any]:
    """A config.yaml that says its model's version.

    Args:
        document: The parsed file, which may say another one.
        version: The version of the checkpoint.
    """
    if version_of_config(document) == version:
        return document
    return {**document, OUR_SECTION: {**_section(document, OUR_SECTION), MODEL_VERSION: version.name}}


def version_of_config(document: Mapping[str, object]) -> ModelVersion:
    """The version that a config.yaml describes. A checkpoint knows better: published files of 2.5 say 2.0.

    Args:
        document: The parsed file.
    """
    recorded = _section(document, OUR_SECTION).get(MODEL_VERSION)
    for version in VERSIONS:
        if recorded == version.name:
            return version
    dataset, gpt = (_section(document, name) for name in ("dataset", "gpt"))
    says = (
        dataset.get("tokenizer_type") == V2_5.tokenizer_type,
        str(dataset.get("bpe_model", "")).endswith(".tiktoken"),
        _number(document.get("version")) >= 2.5,  # the version itself
        gpt.get("number_text_tokens") == TEXT_TOKENS_2_5,
    )
    return V2_5 if any(says) else V2_0


def version_of_checkpoint(keys: Iterable[str], where: str) -> ModelVersion:
    """The version of a checkpoint, by its keys.

    Args:
        keys: All keys.
        where: The file, for messages.

    Raises:
        DataError: They belong to several versions, or to none.
    """
    found = {version: [key for key in keys if key.startswith(version.own_keys)] for version in VERSIONS}
    there = [version for version, own in found.items() if own]
    if len(there) > 1:
        findings = [f"{version}: {', '.join(found[version][:3])}" for version in there]
        raise DataError(
            findings_message(
                f"{where} mixes the keys of several model versions", findings, "Take the gpt.pth of one release."
            )
        )
    if not there:
        expected = " or ".join(f"{version.own_keys[-1]}weight ({version})" for version in VERSIONS)
        raise DataError(f"{where}: no gpt.pth of IndexTTS. Expected {expected} among its keys.")
    return there[0]


def _section(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0
