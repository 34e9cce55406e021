"""`indextts-job export`: writes the files that inference needs, or an adapter alone."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from indextts_job import errors
from indextts_job.commands.best import best_else_newest, tagged, tell_choice
from indextts_job.commands.parser import Commands
from indextts_job.commands.storage_options import add_storage_options, configure

if TYPE_CHECKING:
    from indextts_job.checkpoint.manifest import CheckpointManifest
    from indextts_job.checkpoint.store import CheckpointStore
    from indextts_job.storage.config import StorageConfig


def add(commands: Commands) -> None:
    """Add the command."""
    export = commands.add_parser(
        "export",
        help="write gpt.pth, config.yaml and tokenizer for inference, or an adapter alone",
        description="Write a checkpoint as inference loads it. An adapter is merged into its base. A folder with an "
        "adapter of the library peft is merged too, into the base that --base-checkpoint names.",
    )
    export.add_argument("source", help="a run, a checkpoint's .json, or a folder with an adapter")
    export.add_argument("--output-dir", required=True, help="folder for the export")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--tag", choices=("best", "final", "good"), help="newest checkpoint of the run with this tag")
    which.add_argument("--last", action="store_true", help="the newest; default: the best, without one the newest")
    export.add_argument("--adapter-only", action="store_true", help="the adapter without its base, as peft reads it")
    export.add_argument("--base-checkpoint", default="", help="gpt.pth that an adapter's folder is merged into")
    export.add_argument(
        "--model-config", default="", help="config.yaml of that base (default: checkpoints/config.yaml)"
    )
    export.add_argument("--tokenizer", default="", help="tokenizer of that base")
    add_storage_options(export)
    export.set_defaults(act=_export)


def _export(given: argparse.Namespace) -> int:
    from indextts_job.model.peft_folder import is_adapter_folder
    from indextts_job.storage import files

    storage = configure(given, given.source)
    if files.exists(given.source) and is_adapter_folder(given.source):
        _demand_meant(given, OF_A_RUN, f"is for a run, and {given.source} is a folder with an adapter")
        written = _merged(given)
    else:
        if given.base_checkpoint and not files.exists(given.source):
            raise errors.ConfigError(f"{given.source}: not found. Expected a folder with an adapter, or a run.")
        _demand_meant(given, OF_A_FOLDER, "is for a folder with an adapter; a run knows its own")
        write = _adapter_alone if given.adapter_only else write_whole
        written = write(Path(given.output_dir), *choose_checkpoint(given, storage))
    for path in written:
        print(path)  # noqa: T201
    return errors.EXIT_OK


def choose_checkpoint(
    given: argparse.Namespace, storage: "StorageConfig"
) -> "tuple[CheckpointStore, CheckpointManifest]":
    """The checkpoint that the arguments name, and its run."""
    from indextts_job.resume.points import locate_all

    store, names = locate_all(given.source, storage)
    if given.tag:
        name = tagged(given.source, names, given.tag)
    else:
        name = names[0] if given.last else best_else_newest(store, names)
    manifest = store.manifest(name)
    tell_choice(manifest, store.manifest(names[0]))
    return store, manifest


OF_A_FOLDER = ("base_checkpoint", "model_config", "tokenizer")
"""Options that say what an adapter's folder is merged into."""
OF_A_RUN = ("adapter_only", "tag", "last")
"""Options that choose what of a run is written."""


def _demand_meant(given: argparse.Namespace, options: tuple[str, ...], why: str) -> None:
    """Refuse options that mean nothing for the source, instead of leaving them unheard."""
    for option in options:
        if getattr(given, option):
            raise errors.ConfigError(f"--{option.replace('_', '-')} {why}.")


def write_whole(folder: Path, store: "CheckpointStore", manifest: "CheckpointManifest") -> list[Path]:
    """Write the export of a checkpoint into a folder; returns its files."""
    from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS, below
    from indextts_job.model.export import Described, write_export

    tensors = store.load(manifest, (WEIGHTS, BASE))
    return write_export(
        folder,
        below(WEIGHTS, tensors),
        below(BASE, tensors),
        Described.recorded(manifest.values),
        # The tokenizer of this very checkpoint: the input file may have grown since.
        store.read_file(manifest, "tokenizer.model"),
    )


def _adapter_alone(folder: Path, store: "CheckpointStore", manifest: "CheckpointManifest") -> list[Path]:
    from indextts_job.checkpoint.tensor_names import WEIGHTS, below
    from indextts_job.model.export import write_files
    from indextts_job.model.peft_folder import adapter_files, trained_adapter

    values = manifest.values
    adapter = trained_adapter(below(WEIGHTS, store.load(manifest, (WEIGHTS,))), values)
    return write_files(folder, adapter_files(adapter, values.model or "IndexTTS"))


def _merged(given: argparse.Namespace) -> list[Path]:
    from indextts_job.model.base_of_run import load_base
    from indextts_job.model.config import of_version
    from indextts_job.model.export import Described, write_export
    from indextts_job.model.peft_folder import read_adapter_folder
    from indextts_job.model.versions import corrected
    from indextts_job.model.vocabulary import Vocabulary
    from indextts_job.storage import files
    from indextts_job.tokenizer.limits import model_of
    from indextts_job.tokenizer.loading import demand_base_pieces, load_tokenizer

    if not given.base_checkpoint or not given.tokenizer:
        raise errors.ConfigError(
            f"{given.source} is an adapter. Give --base-checkpoint, --model-config and --tokenizer of the base that it "
            "was trained on."
        )
    config = given.model_config or "checkpoints/config.yaml"
    document = files.read_yaml(config, "model configuration", "--model-config")
    tokenizer = load_tokenizer(given.tokenizer)
    if not isinstance(document, Mapping):
        raise errors.ConfigError(f"{config}: expected keys and values.")
    model = model_of(document, config, tokenizer)
    base = load_base(given.base_checkpoint, model, document, config)
    model = of_version(model, base.version, config)
    demand_base_pieces(tokenizer, base.text_pieces, given.tokenizer)
    adapter = read_adapter_folder(given.source, model)
    return write_export(
        Path(given.output_dir),
        adapter.trained(),
        base.tensors,
        Described(
            document=corrected(document, base.version),
            # An export as base goes on saying which of its rows come from the release.
            vocabulary=Vocabulary(base.text_pieces, base.frozen_pieces or base.text_pieces, base.new_pieces_at),
            adapter=adapter.record(),
            trained_languages=tuple(sorted({*base.languages, *adapter.languages()})),
        ),
        tokenizer.content,
    )
