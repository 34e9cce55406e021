"""`indextts-job shard`: writes a sharded dataset from manifests and their files."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import sys

from indextts_job import errors
from indextts_job.commands.parser import Commands
from indextts_job.commands.storage_options import add_pair_options, add_storage_options, configure


def add(commands: Commands) -> None:
    """Add the command."""
    shard = commands.add_parser(
        "shard", help="make a sharded dataset of manifests and their files, for training from a bucket"
    )
    shard.add_argument("manifests", nargs="+", metavar="MANIFEST[::LANG]", help="paired manifests, paths or URLs")
    shard.add_argument("--output", required=True, help="folder or URL of the sharded dataset")
    shard.add_argument(
        "--tokenizer", required=True, help="tokenizer that the text ids were made with (.model or .tiktoken)"
    )
    shard.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the stored vectors; bfloat16 halves the bytes, rounds, and makes another dataset (default: float32)",
    )
    shard.add_argument(
        "--config", default="checkpoints/config.yaml", help="config.yaml of the model (default: %(default)s)"
    )
    shard.add_argument("--skip-bad-samples", action="store_true", help="leave bad samples out; the index names them")
    add_pair_options(shard)
    add_storage_options(shard, config_is_the_models=True)
    shard.set_defaults(act=_shard)


def _shard(given: argparse.Namespace) -> int:
    from indextts_job.data.manifest import DataConfig
    from indextts_job.data.shard_index import MadeFor
    from indextts_job.data.sharding import write_shards
    from indextts_job.data.sources import load_dataset
    from indextts_job.report.console import ConsoleReport
    from indextts_job.report.events import Notice
    from indextts_job.storage import files
    from indextts_job.tokenizer.limits import limits_of, model_of
    from indextts_job.tokenizer.loading import load_tokenizer

    configure(given)
    tokenizer = load_tokenizer(given.tokenizer)
    model = model_of(files.read_yaml(given.config, "model configuration", "--config"), given.config, tokenizer)
    limits = limits_of(model, tokenizer, DataConfig(emotion=given.emotion, self_pairs=given.self_pairs))
    with ConsoleReport(sys.stdout) as console:
        dataset = load_dataset(
            given.manifests,
            limits,
            skip_bad_samples=given.skip_bad_samples,
            progress=lambda done, total: console.progress("checking data", done, total),
        )
        # Named one by one: a sharded dataset is made once, and what it lacks is never seen again.
        for sample in dataset.skipped:
            message = f"skipped bad sample {sample.id}: {sample.reason}"
            console(Notice(step=0, topic="data", message=message, warning=True))
        for note in dataset.notes:
            console(Notice(step=0, topic="data", message=note, warning=True))
        written = write_shards(
            dataset,
            given.output,
            lambda done, total: console.progress("sharding", done, total),
            made_for=MadeFor.of(limits),
            dtype=given.dtype,
        )
        message = f"{len(dataset)} samples in {given.output}, fingerprint {written[:16]}; train with it as the manifest"
        console(Notice(step=0, topic="shards", message=message))
    return errors.EXIT_OK
