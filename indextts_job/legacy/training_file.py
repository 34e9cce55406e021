"""The settings that the full-layer script kept beside the model in its `--config` file. Pure.

That file is a model configuration with sections `training`, `model_paths` and `output`. The script's flags are
stronger than the file, as here.
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
    if not isinstance(document, Mapping) or "gpt" not in document or not isinstance(document.get("training"), Mapping):
        return {}
    keys = {ours: value for theirs, ours in _KEYS.items() if (value := _at(document, theirs)) is not None}
    batch, cycles = (_at(document, f"training.{name}") for name in ("batch_size", "gradient_accumulation_steps"))
    if isinstance(batch, int) and isinstance(cycles, int):
        keys["recipe.global_batch_samples"] = batch * cycles
    return keys


def _at(document: Mapping[str, object], path: str) -> object:
    section, _, name = path.partition(".")
    values = document.get(section)
    return values.get(name) if isinstance(values, Mapping) else None
