"""The flags of the old trainer, as keys of the configuration. The list is closed.

An old command line works with only the program's name changed. A flag without a meaning of its own here sets what it
was meant for, and a line explains it. New settings are configuration keys, never new flags.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from indextts_job.errors import ConfigError

MICRO_BATCH_OF_OLD_TRAINER = 8
"""Its micro-batch on a 24 GB card; its validation batches were twice as large."""
VALIDATION_BATCHES_OF_OLD_TRAINER = 200
"""Its default of `--max-val-batches`."""


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    key: str
    kind: type
    help: str


_FLAGS = (
    _Flag("--tokenizer", "inputs.tokenizer", str, "SentencePiece model"),
    _Flag("--config", "inputs.model_config", str, "config.yaml published with the base checkpoint"),
    _Flag("--base-checkpoint", "inputs.base_checkpoint", str, "IndexTTS2's gpt.pth"),
    _Flag("--output-dir", "run", str, "folder or URL of the run"),
    _Flag("--resume", "resume.source", str, "auto, none, a run, or one checkpoint"),
    _Flag("--epochs", "schedule.epochs", int, "passes over the training set"),
    _Flag("--max-steps", "schedule.max_steps", int, "limit of optimizer steps, 0 = none"),
    _Flag("--learning-rate", "schedule.learning_rate", float, "peak learning rate"),
    _Flag("--warmup-steps", "schedule.warmup_steps", int, "steps of linear warmup"),
    _Flag("--weight-decay", "optimizer.weight_decay", float, "decay of the transformer's matrices"),
    _Flag("--grad-clip", "optimizer.grad_clip", float, "bound of the gradient norm, 0 = none"),
    _Flag("--text-loss-weight", "recipe.text_loss_weight", float, "weight of the text loss"),
    _Flag("--mel-loss-weight", "recipe.mel_loss_weight", float, "weight of the code loss"),
    _Flag("--seed", "recipe.seed", int, "keys order, dropout and new rows"),
    _Flag("--log-interval", "report.log_interval_steps", int, "steps per train line"),
    _Flag("--val-interval", "validation.interval_steps", int, "steps between validations, 0 = per epoch"),
    _Flag("--save-interval", "checkpoint.interval_steps", int, "steps between checkpoints"),
    _Flag("--keep-checkpoints", "checkpoint.keep", int, "newest checkpoints kept"),
)
_ALIASES = {
    "--resume-from": "--resume",
    "--model-path": "--base-checkpoint",
    "--amharic-vocab": "--tokenizer",
    "--num-epochs": "--epochs",
    "--mixed-precision": "--amp",
    "--gradient-accumulation-steps": "--grad-accumulation",
}
_LINE_CONTINUATIONS = {"^": "Windows' cmd.exe", "`": "PowerShell"}


def normalise(arguments: Sequence[str]) -> list[str]:
    """The arguments with hyphens for underscores in flags, and with the new names of renamed flags.

    Raises:
        ConfigError: The command line is written for a Windows shell.
    """
    result = []
    for argument in arguments:
        if argument in _LINE_CONTINUATIONS:
            raise ConfigError(
                f"a lone {argument} on the command line: it continues a line in {_LINE_CONTINUATIONS[argument]}. Here "
                "write \\ at the end of a line instead, and / instead of \\ in paths."
            )
        name, found, value = argument.partition("=")
        result.append(_current_name(name) + found + value)
    return result


def _current_name(name: str) -> str:
    """The name of a flag today; other arguments unchanged."""
    if not name.startswith("--"):
        return name
    name = name.replace("_", "-")
    return _ALIASES.get(name, name)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare every flag of the old trainer."""
    # No flag has a default: only those that are given override the configuration file.
    group = parser.add_argument_group("flags of the old trainer", "each sets the configuration key it names")
    for flag in _FLAGS:
        metavar = flag.name.removeprefix("--").rpartition("-")[2].upper()
        group.add_argument(flag.name, type=flag.kind, default=None, metavar=metavar, help=f"{flag.help} ({flag.key})")
    for name, key in (
        ("--train-manifest", "data.train_manifests"),
        ("--val-manifest", "data.validation_manifests"),
    ):
        group.add_argument(
            name,
            action="append",
            default=None,
            metavar="PATH[::LANG]",
            help=f"paired manifest, repeatable ({key})",
        )
    for name in (
        "--batch-size",
        "--grad-accumulation",
        "--val-batch-size",
        "--max-val-batches",
        "--num-workers",
    ):
        group.add_argument(
            name, type=int, default=None, metavar="N", help="sets what it was meant for; a line explains it"
        )
    for name in ("--amp", "--grad-checkpointing"):
        group.add_argument(name, action="store_true", help="accepted and explained")
    group.add_argument("--use-wandb", action="store_true", help="curves to Weights & Biases too (report.trackers)")
    for name in ("optimizer", "scheduler"):
        group.add_argument(
            f"--load-{name}",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="off: fresh moments, schedule and position together (resume.weights_only)",
        )


def overrides(given: argparse.Namespace, environment: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The given flags as dotted keys of the configuration.

    Args:
        given: Arguments parsed by a parser with `add_flags`.
        environment: Environment variables; `INDEXTTS_RUN_NAME` names the TensorBoard curve.

    Returns:
        The keys with their values, and one line for every flag whose meaning changed.

    Raises:
        ConfigError: A path is written as on Windows.
    """
    keys = _given_keys(given)
    if given.load_optimizer is False or given.load_scheduler is False:
        keys["resume.weights_only"] = True
    if given.use_wandb:
        keys["report.trackers"] = ["wandb"]
    if environment.get("INDEXTTS_RUN_NAME"):
        keys["report.run_name"] = environment["INDEXTTS_RUN_NAME"]
    _refuse_backslashes(keys)
    notes = [*_global_batch(given, keys), *_validation(given, keys), *_fresh_state(given)]
    return keys, [*notes, *_without_effect(given)]


def _given_keys(given: argparse.Namespace) -> dict[str, object]:
    """The keys that flags set directly."""
    values = {flag.key: getattr(given, flag.name.removeprefix("--").replace("-", "_")) for flag in _FLAGS}
    keys = {key: value for key, value in values.items() if value is not None}
    if given.train_manifest:
        keys["data.train_manifests"] = given.train_manifest
    if given.val_manifest:
        keys["data.validation_manifests"] = given.val_manifest
    return keys


def _refuse_backslashes(keys: Mapping[str, object]) -> None:
    # On Linux a backslash is a letter of a file name. In an old command line it comes from Windows.
    paths = [(key, path) for key, value in keys.items() for path in (value if isinstance(value, list) else [value])]
    for key, path in paths:
        if isinstance(path, str) and "\\" in path:
            raise ConfigError(
                f"{key}: {path} has backslashes, which separate folders on Windows only. Write "
                f"{path.replace(chr(92), '/')}"
            )


def _without_effect(given: argparse.Namespace) -> list[str]:
    """A line for each given flag that sets nothing here."""
    notes = []
    if given.num_workers is not None:
        notes.append("--num-workers: one prefetch thread feeds the step; batches are assembled without workers")
    if given.amp:
        notes.append("--amp: precision follows the hardware (hardware.precision: auto)")
    if given.grad_checkpointing:
        notes.append(
            "--grad-checkpointing: not needed, micro-batches fit the memory (hardware.recompute=always forces it)"
        )
    return notes


def _fresh_state(given: argparse.Namespace) -> list[str]:
    # Only one of the two is to be loaded: the old trainer could do that, and we cannot.
    chosen = {"optimizer": given.load_optimizer, "scheduler": given.load_scheduler}
    if set(chosen.values()) != {True, False}:
        return []
    kept = next(name for name, value in chosen.items() if value)
    off = next(name for name, value in chosen.items() if value is False)
    return [
        f"--load-{kept} with --no-load-{off}: not followed. Moments, schedule and position belong together and all "
        "start afresh; only the weights are loaded"
    ]


def _global_batch(given: argparse.Namespace, keys: dict[str, object]) -> list[str]:
    batch, cycles = given.batch_size or 0, given.grad_accumulation or 0
    if batch and cycles:
        keys["recipe.global_batch_samples"] = batch * cycles
        return [
            f"--batch-size {batch} x --grad-accumulation {cycles}: the global batch is {batch * cycles} samples; how "
            "it is cut into micro-batches follows the memory"
        ]
    if batch or cycles:
        flag = f"--batch-size {batch}" if batch else f"--grad-accumulation {cycles}"
        return [
            f"{flag} alone: micro-batches follow the memory, the global batch is recipe.global_batch_samples; give "
            "both flags to set it to their product"
        ]
    return []


def _validation(given: argparse.Namespace, keys: dict[str, object]) -> list[str]:
    if given.max_val_batches is None and given.val_batch_size is None:
        return []
    batches = VALIDATION_BATCHES_OF_OLD_TRAINER if given.max_val_batches is None else given.max_val_batches
    size = given.val_batch_size or 2 * (given.batch_size or MICRO_BATCH_OF_OLD_TRAINER)
    # In samples, because batches follow the memory here. 0 samples mean the whole set, as 0 batches did.
    keys["validation.max_samples"] = batches * size
    if not batches:
        return ["--max-val-batches 0: the whole validation set is used"]
    return [f"--max-val-batches {batches} x {size}: {batches * size} validation samples, whatever the hardware"]
