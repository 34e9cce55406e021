"""The training settings in the `--config` file of the full-layer script. Pure.

That file is a model configuration with the additional sections `training`, `model_paths` and `output`. Flags override
the file, as in the script.
"""

from collections.abc import Mapping

_KEYS = {
    "training.num_epochs": "schedule.epochs",
    "training.learning_rate": "schedule.learning_rate",
    "training.warmup_steps": "schedule.warmup_steps",
    "training.weight_decay": "optimizer.weight_decay",
    "training.gradient_clip_val": "optimizer.grad_clip",
    "training.save_every": "checkpoint.interval_steps",
    "training.log_every": "report.log_interval_steps",
    "training.early_stopping_patience": "validation.early_stopping_patience",
    "model_paths.pretrained_model": "inputs.base_checkpoint",
    "model_paths.amharic_vocab": "inputs.tokenizer",
    "output.checkpoint_dir": "run",
}


def settings_of(document: object) -> dict[str, object]:
    """The keys of our configuration that such a file sets; empty for a plain model configuration.

    Args:
        document: The parsed file.
    """
    if not isinstance(document, Mapping) or not _has_training_settings(document):
        return {}
    keys = {ours: value for theirs, ours in _KEYS.items() if (value := _at(document, theirs)) is not None}
    batch, cycles = (_at(document, f"training.{name}") for name in ("batch_size", "gradient_accumulation_steps"))
    # One of the two alone does not give the global batch: the script's default for the other is not in the file.
    if isinstance(batch, int) and isinstance(cycles, int):
        keys["recipe.global_batch_samples"] = batch * cycles
    return keys


def _has_training_settings(document: Mapping[str, object]) -> bool:
    # The config.yaml of a release has a `gpt` section only; some other file may have a `training` section only.
    return "gpt" in document and isinstance(document.get("training"), Mapping)


def _at(document: Mapping[str, object], path: str) -> object:
    """The value of `section.name`; None where there is none."""
    section, _, name = path.partition(".")
    values = document.get(section)
    return values.get(name) if isinstance(values, Mapping) else None
