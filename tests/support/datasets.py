"""Datasets in the real format and of realistic proportions, sound in every respect, as large as asked for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from indextts_job.doctor.tails import code_count
from indextts_job.model.versions import V2_0
from indextts_job.tokenizer.normalize import normalize

SPEAKERS = 60
PROMPTS = 2
"""Pairs of each utterance."""
WIDTH = 32
"""Of the tests' model."""


@dataclass(frozen=True, slots=True)
class MadeDataset:
    """Its two manifests; arrays lie beside them."""

    train: Path
    validation: Path


def make_dataset(folder: Path, pairs: int, tokenizer: bytes, sentences: list[str], seed: int = 3) -> MadeDataset:
    """Write a dataset.

    Args:
        folder: For manifests and arrays.
        pairs: To train on; a twentieth as many are there to validate on.
        tokenizer: Model file.
        sentences: Texts to speak; repeated with a number of words each.
        seed: Of everything random.
    """
    random = np.random.default_rng(seed)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(tokenizer)
    for name in ("text_ids", "codes", "condition", "emo_vec"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    conditions = random.normal(0, 0.5, (SPEAKERS, *V2_0.speaker_shape(WIDTH))).astype(np.float32)
    made = MadeDataset(folder / "train.jsonl", folder / "validation.jsonl")
    for manifest, count, prefix in ((made.train, pairs, "t"), (made.validation, max(8, pairs // 20), "v")):
        utterances = [
            _utterance(folder, f"{prefix}{number:06d}", sentences, processor, random, conditions[number % SPEAKERS])
            for number in range(_whole_rounds(count))
        ]
        with manifest.open("w", encoding="utf-8") as file:
            for number in range(count):
                target, prompt = number // PROMPTS % len(utterances), _prompt(number, len(utterances))
                pair = _pair(utterances[target], utterances[prompt], target % SPEAKERS)
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    return made


def _whole_rounds(pairs: int) -> int:
    """Utterances for so many pairs, as many of every speaker, and enough for two prompts."""
    return max(PROMPTS + 1, -(-pairs // (PROMPTS * SPEAKERS))) * SPEAKERS


def _prompt(number: int, utterances: int) -> int:
    """Another utterance of the target's speaker: some rounds of speakers further on."""
    target, rounds = number // PROMPTS % utterances, utterances // SPEAKERS
    shift = 1 + number % PROMPTS
    return (target // SPEAKERS + shift) % rounds * SPEAKERS + target % SPEAKERS


def _utterance(
    folder: Path,
    name: str,
    sentences: list[str],
    processor: sentencepiece.SentencePieceProcessor,
    random: np.random.Generator,
    condition: np.ndarray[Any, np.dtype[np.float32]],
) -> dict[str, Any]:
    text = sentences[int(random.integers(len(sentences)))]
    ids = processor.EncodeAsIds(normalize(text, "am"))
    seconds = float(np.clip(len(ids) / random.normal(4.0, 0.4), 2.1, 7.9))
    codes = random.integers(0, 128, code_count(seconds, V2_0.codes_per_second))
    np.save(folder / "text_ids" / name, np.array(ids, np.int32))
    np.save(folder / "codes" / name, codes.astype(np.int32))
    np.save(folder / "condition" / name, condition)
    np.save(folder / "emo_vec" / name, random.normal(0, 0.1, WIDTH).astype(np.float32))
    return {"name": name, "text": text, "seconds": seconds, "text_len": len(ids), "code_len": len(codes)}


def _pair(target: dict[str, Any], prompt: dict[str, Any], speaker: int) -> dict[str, Any]:
    return {
        "id": f"{target['name']}__{prompt['name']}",
        "speaker": f"speaker-{speaker}",
        "prompt_id": prompt["name"],
        "target_id": target["name"],
        "target_text": target["text"],
        "target_duration": target["seconds"],
        "prompt_condition_path": f"condition/{prompt['name']}.npy",
        "prompt_emo_vec_path": f"emo_vec/{prompt['name']}.npy",
        "target_text_ids_path": f"text_ids/{target['name']}.npy",
        "target_codes_path": f"codes/{target['name']}.npy",
        "target_text_len": target["text_len"],
        "target_code_len": target["code_len"],
        "target_language": "am",
    }
