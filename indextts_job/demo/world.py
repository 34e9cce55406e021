"""Make a small dataset, base checkpoint and tokenizers in the real formats, of either version of the model.

The codes depend on the text: each token has its own sequence of codes, so a falling loss means that the model learns to
read. The texts are in Amharic, which the base tokenizer does not know, as in the training that this project is for.
"""

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import yaml
from torch import Tensor

from indextts_job.data.archives import MEMBERS
from indextts_job.model.config import carried_shapes, gpt_config, trained_shapes
from indextts_job.model.versions import V2_0, ModelVersion, Shape
from indextts_job.tokenizer.encoding import encode
from indextts_job.tokenizer.extend import extend
from indextts_job.tokenizer.loading import parse_tokenizer

CODES = 128
CODES_PER_TOKEN = 4
SPEAKERS = 6
EXTENDED_PIECES = 217
"""As many as `WORDS` gives useful pieces for, with the base's 100."""
_BASE_TEXT = (
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG . PACK MY BOX WITH FIVE DOZEN LIQUOR JUGS ! HOW VEXINGLY QUICK DAFT "
    "ZEBRAS JUMP ? SPHINX OF BLACK QUARTZ , JUDGE MY VOW - EVERY GOOD RUN ENDS WELL"
)
WORDS = (
    *("ሰላም", "ዓለም", "ቤት", "ውሃ", "እሳት", "መጽሐፍ", "ልጅ", "እናት", "አባት", "ወንድም", "እህት", "ፀሐይ", "ጨረቃ", "ኮከብ"),
    *("ተራራ", "ወንዝ", "ባህር", "ዛፍ", "አበባ", "ወፍ", "ውሻ", "ድመት", "ፈረስ", "ላም", "ዳቦ", "ቡና", "ሻይ", "መንገድ", "ከተማ"),
)


_NORMS = ("ln_", "norm", "final_norm", "after_norm")


@dataclass(frozen=True, slots=True)
class World:
    """The paths of a dataset, its model and its tokenizers."""

    folder: Path
    version: ModelVersion = V2_0

    @property
    def model_config(self) -> Path:
        """`config.yaml`."""
        return self.folder / "checkpoints/config.yaml"

    @property
    def base_checkpoint(self) -> Path:
        """`gpt.pth`."""
        return self.folder / "checkpoints/gpt.pth"

    @property
    def base_tokenizer(self) -> Path:
        """The tokenizer of the base checkpoint."""
        return self.folder / "checkpoints" / self.version.tokenizer_file

    @property
    def tokenizer(self) -> Path:
        """The extended tokenizer that the dataset was made with."""
        # A language of the release has its token and its row: there is nothing to extend.
        return self.base_tokenizer if self.version.ranks else self.folder / "tokenizers/extended_bpe.model"

    @property
    def train_manifest(self) -> Path:
        """The manifest of the training set."""
        return self.folder / "processed/gpt_pairs_train.jsonl"

    @property
    def validation_manifest(self) -> Path:
        """The manifest of the validation set."""
        return self.folder / "processed/gpt_pairs_val.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSize:
    """The sizes of dataset and model."""

    samples: int = 240
    validation_samples: int = 24
    width: int = 64
    layers: int = 2
    heads: int = 4
    words: tuple[int, int] = (2, 6)
    """Least and largest number of words in a sentence."""
    extended: bool = True
    """Amharic texts with the extended tokenizer; otherwise English texts with the base tokenizer."""
    language: str = "am"
    """Label of the language in the records of IndexTTS-2.0."""
    version: ModelVersion = V2_0
    archives: bool = True
    """In IndexTTS-2.5: an archive for each utterance, as the public preprocessing writes; otherwise a file for each
    array."""


def make_world(folder: Path, size: WorldSize, seed: int = 7) -> World:
    """Write dataset, base checkpoint and tokenizers into a folder.

    Args:
        folder: Created if missing; files of these names are overwritten.
        size: The sizes of dataset and model.
        seed: Seed of weights, texts and vectors.
    """
    world = World(folder, size.version)
    for path in (world.base_checkpoint, world.tokenizer, world.train_manifest):
        path.parent.mkdir(parents=True, exist_ok=True)
    encode_text, pieces = _write_ranks(world) if size.version.ranks else _write_pieces(world, size)
    document = _model_document(size, pieces)
    world.model_config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    _write_base_checkpoint(world.base_checkpoint, document, seed)
    _write_dataset(world, size, encode_text, seed)
    return world


Encode = Callable[[str], list[int]]
"""The ids of a text."""


def _write_pieces(world: World, size: WorldSize) -> tuple[Encode, int]:
    """Write base and extended SentencePiece model; returns what encodes texts, and the number of base pieces."""
    base = base_tokenizer()
    extended = extend(base, WORDS, EXTENDED_PIECES).content
    world.base_tokenizer.write_bytes(base)
    world.tokenizer.write_bytes(extended)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(base)
    pieces = processor.GetPieceSize()
    processor.LoadFromSerializedProto(extended if size.extended else base)
    return processor.EncodeAsIds, pieces


def _write_ranks(world: World) -> tuple[Encode, int]:
    """The same with a file of ranks."""
    content = base_ranks()
    world.base_tokenizer.write_bytes(content)
    tokenizer = parse_tokenizer(content, str(world.base_tokenizer))
    return lambda text: encode(tokenizer, f"<|am|> {text}"), tokenizer.pieces


def base_ranks() -> bytes:
    """A tokenizer of the release's kind for the texts of this dataset: bytes, letters, beginnings of words."""
    tokens = [bytes([value]) for value in range(256)]
    letters = [letter.encode() for letter in dict.fromkeys("".join(WORDS))]
    # Only pairs of neighbours are merged, so each token needs two that it is made of.
    tokens += dict.fromkeys(letter[:2] for letter in letters)
    tokens += letters
    tokens += dict.fromkeys(word[:end].encode() for end in range(2, 8) for word in WORDS if len(word) >= end)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def base_tokenizer() -> bytes:
    """A byte-pair tokenizer of a hundred upper-case English pieces."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*_BASE_TEXT.split(), _BASE_TEXT]),
        model_writer=stream,
        vocab_size=100,
        model_type="bpe",
        character_coverage=1.0,
        # The ids of the released tokenizer.
        bos_id=0,
        eos_id=1,
        unk_id=2,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return stream.getvalue()


def _model_document(size: WorldSize, base_pieces: int) -> dict[str, Any]:
    def conformer(blocks: int) -> dict[str, Any]:
        return {
            "output_size": 16,
            "linear_units": 32,
            "attention_heads": 2,
            "num_blocks": blocks,
            "input_layer": "conv2d2",
            "perceiver_mult": 1,
        }

    version = size.version
    kind = {"tokenizer_type": version.tokenizer_type} if version.tokenizer_type else {}
    return {
        "dataset": {"bpe_model": version.tokenizer_file, **kind, "sample_rate": 24000},
        "gpt": {
            "model_dim": size.width,
            "max_mel_tokens": 400,
            "max_text_tokens": 120,
            "heads": size.heads,
            "use_mel_codes_as_input": True,
            "mel_length_compression": 1024,
            "layers": size.layers,
            "number_text_tokens": base_pieces,
            # The codes, and behind them their start and stop, as in the release.
            "number_mel_codes": CODES + 2,
            "start_mel_token": CODES,
            "stop_mel_token": CODES + 1,
            "start_text_token": 0,
            "stop_text_token": 1,
            "train_solo_embeddings": False,
            "condition_type": "conformer_perceiver",
            "condition_module": conformer(2),
            "emo_condition_module": conformer(1),
        },
        "gpt_checkpoint": "gpt.pth",
        "version": float(version.name),
    }


def _write_base_checkpoint(path: Path, document: dict[str, Any], seed: int) -> None:
    """Write a model with the initial values of GPT-2."""
    config = gpt_config(document, str(path))
    generator = torch.Generator().manual_seed(seed)
    shapes = trained_shapes(config, config.number_text_tokens + 1) | carried_shapes(config)
    torch.save({key: _initial(key, shape, config.layers, generator) for key, shape in shapes.items()}, path)


def _initial(key: str, shape: Shape, layers: int, generator: torch.Generator) -> Tensor:
    module = key.split(".")[-2]
    if key.endswith("bias"):
        return torch.zeros(shape)
    if module.startswith(_NORMS) or key.endswith("gamma"):
        return torch.ones(shape)
    # The outputs of a block are added up over all layers, two per block (Radford et al. 2019, section 2.3).
    std = 0.02 / math.sqrt(2 * layers) if module == "c_proj" else 0.02
    return torch.randn(shape, generator=generator) * std


def codes_of(text_ids: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The codes of a text: for each token a sequence that starts at a place of its own."""
    return np.array(
        [(17 * token + 5 * j) % CODES for token in text_ids for j in range(CODES_PER_TOKEN)], dtype=np.int32
    )


def _write_dataset(world: World, size: WorldSize, encode_text: Encode, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Utterances of one speaker have similar conditioning arrays, as those of a real encoder would.
    voices = random.normal(0, 0.5, (SPEAKERS, *size.version.speaker_shape(size.width)))
    words = WORDS if size.extended else _BASE_TEXT.split()
    for manifest, count, prefix in (
        (world.train_manifest, size.samples, "utt"),
        (world.validation_manifest, size.validation_samples, "val"),
    ):
        lines = []
        for number in range(count):
            text = " ".join(random.choice(words, random.integers(*size.words, endpoint=True)))
            ids = encode_text(text)
            voice = voices[number % SPEAKERS]
            condition = voice + random.normal(0, 0.05, voice.shape)
            arrays = {
                "text": np.array(ids, dtype=np.int32),
                "codes": codes_of(ids),
                "condition": condition.astype(np.float32),
                "emotion": random.normal(0, 0.1, size.width).astype(np.float32),
            }
            # The prompt is the next utterance of the same speaker.
            names = f"{prefix}_{number:05d}", f"{prefix}_{(number + SPEAKERS) % count:05d}"
            record = _written(manifest.parent, names, text, arrays, size)
            lines.append(json.dumps({**record, "speaker": f"speaker{number % SPEAKERS}"}, ensure_ascii=False) + "\n")
        manifest.write_text("".join(lines), encoding="utf-8")


def _written(
    folder: Path, names: tuple[str, str], text: str, arrays: dict[str, Any], size: WorldSize
) -> dict[str, Any]:
    """Write the arrays of an utterance; returns its record.

    Args:
        folder: Folder of the dataset.
        names: Names of the target, which is written, and of its prompt.
        text: What is said.
        arrays: By use.
        size: Version and layout of the dataset.
    """
    target, prompt = names
    lengths = len(arrays["text"]), len(arrays["codes"])
    if size.version.ranks and size.archives:
        (folder / "features").mkdir(exist_ok=True)
        np.savez(folder / "features" / target, **{MEMBERS[use]: values for use, values in arrays.items()})
        return _archived_pair(target, prompt, text, *lengths)
    for place, values in zip(("text_ids", "codes", "condition", "emo_vec"), arrays.values(), strict=True):
        (folder / place).mkdir(exist_ok=True)
        np.save(folder / place / target, values)
    return _pair(target, prompt, text, *lengths, size)


def _pair(target: str, prompt: str, text: str, text_len: int, code_len: int, size: WorldSize) -> dict[str, Any]:
    speaker = (
        {"prompt_speaker_path": f"condition/{prompt}.npy"}
        if size.version.speaker_width
        else {"prompt_condition_path": f"condition/{prompt}.npy", "prompt_condition_len": size.version.speaker_latents}
    )
    return {
        "id": f"{target}__{prompt}",
        "prompt_id": prompt,
        "target_id": target,
        "target_text": text,
        **speaker,
        "prompt_emo_vec_path": f"emo_vec/{prompt}.npy",
        "target_emo_vec_path": f"emo_vec/{target}.npy",
        "target_text_ids_path": f"text_ids/{target}.npy",
        "target_codes_path": f"codes/{target}.npy",
        "target_text_len": text_len,
        "target_code_len": code_len,
        "target_language": size.language,
    }


def _archived_pair(target: str, prompt: str, text: str, text_len: int, code_len: int) -> dict[str, Any]:
    """A pair as the public preprocessing of IndexTTS-2.5 writes it."""
    return {
        "id": f"{target}__{prompt}",
        "target_features": f"features/{target}.npz",
        "prompt_features": f"features/{prompt}.npz",
        "lang": "am",
        "lang_alias": None,
        "prompt_lang": "am",
        "cross_lingual": False,
        "text": text,
        "text_len": text_len,
        "code_len": code_len,
    }
