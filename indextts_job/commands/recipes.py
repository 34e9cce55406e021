"""Settings to start from, with where they come from. Pure."""

import json
import re
from dataclasses import dataclass

from indextts_job.commands.config_schema import FIRST_LINE
from indextts_job.model.versions import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A preset of a run.yaml."""

    name: str
    purpose: str
    source: str
    """Where the figures come from."""
    settings: tuple[str, ...]
    """Lines of the run.yaml behind inputs and data."""
    extended: bool
    """Whether IndexTTS-2.0 needs an extended tokenizer for it."""


_PLAIN = re.compile(r"[A-Za-z./][\w./@-]*(:{1,2}[\w./@-]+)*", re.ASCII)
"""Texts that YAML reads as they are, in a list too."""
_OURS = "ours, from toys and arithmetic: a starting point, not a finding"
RECIPES = (
    Recipe(
        name="new-language",
        purpose="a new language with an adapter: 8 to 24 GB cards, the base stays as it is",
        source=f"rank, alpha and rate of github.com/oberkayb/index-tts-2.5-ft (Turkish); the rest {_OURS}",
        settings=(
            "adapter: {rank: 32, alpha: 64, rows_factor: 10}  # language rows learn ten times as fast",
            "schedule: {learning_rate: 1e-4, warmup_steps: 500, epochs: 12}",
            "recipe: {text_loss_weight: 0.2, mel_loss_weight: 0.8, dropout: 0}",
            "optimizer: {beta2: 0.95}",
        ),
        extended=True,
    ),
    Recipe(
        name="one-voice",
        purpose="one voice, or a few, in a language that the model speaks: minutes to hours of speech",
        source=f"github.com/LLjo/index-tts-full-lora-finetuning (50 to 500 clips); warm-up and decay {_OURS}",
        settings=(
            "adapter: {rank: 8, alpha: 16, dropout: 0.05}",
            "schedule: {learning_rate: 3e-4, warmup_steps: 100, epochs: 20}",
            "recipe: {global_batch_samples: 16, dropout: 0}",
            "validation: {interval_steps: 0, early_stopping_patience: 3}  # each epoch; the last is seldom the best",
        ),
        extended=False,
    ),
    Recipe(
        name="full",
        purpose="a new language with all weights: 24 GB cards and larger, tens to hundreds of hours",
        source="the public trainer's documents for a new language",
        settings=(
            "schedule: {learning_rate: 5e-6, warmup_steps: 2000}",
            "recipe: {text_loss_weight: 0.4, mel_loss_weight: 0.6}",
        ),
        extended=True,
    ),
)


def _scalar(text: str) -> str:
    """A text as YAML has it, also inside a list: quoted where it would mean something else."""
    return json.dumps(text, ensure_ascii=False) if not _PLAIN.fullmatch(text) else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The files of a run.yaml."""

    run: str
    base_checkpoint: str
    model_config: str
    tokenizer: str
    train_manifest: str
    """Without the language."""
    validation_manifest: str


def usual_places(recipe: Recipe, version: ModelVersion, language: str) -> Places:
    """Where the release and the public preprocessing leave the files.

    Args:
        recipe: The preset.
        version: The version of the model.
        language: Code of the language.
    """
    tokenizer = f"checkpoints/{version.tokenizer_file}"
    if recipe.extended and not version.ranks:
        tokenizer = "tokenizers/extended_bpe.model"
    names = ("gpt_pairs_train", "gpt_pairs_val") if not version.ranks else ("pairs_train", "pairs_val")
    return Places(
        run=f"runs/{language}",
        base_checkpoint="checkpoints/gpt.pth",
        model_config="checkpoints/config.yaml",
        tokenizer=tokenizer,
        train_manifest=f"processed/{names[0]}.jsonl",
        validation_manifest=f"processed/{names[1]}.jsonl",
    )


def run_file(recipe: Recipe, version: ModelVersion, places: Places, language: str) -> str:
    """A commented run.yaml.

    Args:
        recipe: The preset.
        version: The version of the model.
        places: Its files.
        language: Label of the language, for the manifests.
    """
    lines = [
        FIRST_LINE,
        f"# {version}: {recipe.purpose}.",
        f"# Settings: {recipe.source}.",
        "# `indextts-job train --help-config` prints every key; `indextts-job doctor run` tries this file.",
        f"run: {_scalar(places.run)}",
        "inputs:",
        f"  model_config: {_scalar(places.model_config)}",
        f"  base_checkpoint: {_scalar(places.base_checkpoint)}",
        f"  tokenizer: {_scalar(places.tokenizer)}",
        "data:",
        f"  train_manifests: [{_scalar(f'{places.train_manifest}::{language}')}]",
        f"  validation_manifests: [{_scalar(f'{places.validation_manifest}::{language}')}]",
        *recipe.settings,
    ]
    return "\n".join(lines) + "\n"
