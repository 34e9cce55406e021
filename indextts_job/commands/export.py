"""`indextts-job export`: writes the files that inference needs."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
from pathlib import Path

from indextts_job import errors
from indextts_job.commands.parser import Commands
from indextts_job.commands.storage_options import add_storage_options, configure


def add(commands: Commands) -> None:
    """Add the command."""
    export = commands.add_parser("export", help="write gpt.pth, config.yaml and tokenizer for inference")
    export.add_argument("source", help="a run, or a checkpoint's .json")
    export.add_argument("--output-dir", required=True, help="folder for the export")
    export.add_argument("--tag", choices=("best", "final"), help="newest checkpoint with this tag; default: the newest")
    add_storage_options(export)
    export.set_defaults(act=_export)


def _export(given: argparse.Namespace) -> int:
    from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS, below
    from indextts_job.model.export import write_export
    from indextts_job.resume.points import locate_all

    store, names = locate_all(given.source, configure(given, given.source))
    # Sorted with the newest first, so the first match is the newest with the tag.
    tagged = [name for name in names if given.tag is None or given.tag in name.tags]
    if not tagged:
        raise errors.ConfigError(
            f"{given.source} holds no checkpoint tagged {given.tag}. `checkpoints list` shows what there is."
        )
    manifest = store.manifest(tagged[0])
    tensors = store.load(manifest, (WEIGHTS, BASE))
    written = write_export(
        Path(given.output_dir),
        below(WEIGHTS, tensors),
        below(BASE, tensors),
        manifest.values,
        # The tokenizer of this very checkpoint: the input file may have grown since.
        store.read_file(manifest, "tokenizer.model"),
    )
    for path in written:
        print(path)  # noqa: T201
    return errors.EXIT_OK
