"""The command line: arguments to calls, exceptions to exit codes (I8).

Heavy imports wait until the command is known and, for training, until the signal handlers are in place: a SIGTERM
that finds no handler ends the process with nothing committed.
"""

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from indextts_job import errors
from indextts_job.background import begin
from indextts_job.preemption.signals import StopSignals

# ruff: noqa: PLC0415  # imports inside functions: see above


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    stop = StopSignals()
    logging.basicConfig(level=logging.WARNING, format="warning     %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        stop.install()
    try:
        return _dispatch(given, stop)
    except errors.StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except errors.IndexTTSJobError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`… | head`): nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_OK
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # the last resort: an exit code that launchers retry
        traceback.print_exc()
        print(  # noqa: T201
            f"error: unexpected {type(error).__name__}: {error}\n"
            "This is a defect of indextts-job: please report it with the lines above. Committed checkpoints are "
            "intact; the same command goes on from the last one.",
            file=sys.stderr,
        )
        return errors.EXIT_SOFTWARE


def _dispatch(arguments: Sequence[str], stop: StopSignals) -> int:
    from indextts_job.legacy import flags

    parser = build_parser()
    given, rest = parser.parse_known_args(flags.normalise(arguments))
    # argparse takes positional arguments in one place only; settings may stand anywhere among the flags.
    unknown = [argument for argument in rest if argument.startswith("-") or given.command != "train"]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if given.command == "train":
        given.settings += rest
        return _train(given, stop)
    if given.command == "checkpoints":
        return _inspect(given) if given.action == "inspect" else _list(given.run, given.json, given.verify)
    if given.command == "export":
        return _export(given)
    if given.command == "status":
        return _status(given)
    if given.command == "shard":
        return _shard(given)
    from indextts_job.demo.show import run_demo

    return run_demo(Path(given.folder), given.url)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # noqa: ANN401  # never returns
        self.print_usage(sys.stderr)
        raise errors.ConfigError(f"{message}. `{self.prog} --help` lists what is possible.")


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    from indextts_job.legacy import flags

    parser = _Parser(
        prog="indextts-job",
        description="Fine-tune IndexTTS2's GPT on machines that may vanish. Exit codes: 0 complete, 75 stopped and "
        "committed (start again), 69 and 70 failed (retry), 65 data, 77 access, 78 configuration (do not retry).",
    )
    parser.add_argument("--version", action="version", version=f"indextts-job {version('indextts-job')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    train = commands.add_parser(
        "train",
        help="train, or go on where the run stands",
        description="Train, or go on where the run stands: the same command again continues an interrupted run.",
    )
    train.add_argument(
        "settings",
        nargs="*",
        metavar="RUN.yaml | key=value",
        help="configuration file, and dotted keys that override it, for example schedule.max_steps=200",
    )
    train.add_argument("--grace-seconds", type=float, help="seconds from signal to kill (preemption.grace_seconds)")
    train.add_argument("--skip-bad-samples", action="store_true", help="leave bad samples out (data.skip_bad_samples)")
    train.add_argument("--list-checkpoints", action="store_true", help="list the run's checkpoints and exit")
    train.add_argument(
        "--help-config", action="store_true", help="print every key, explained, with its default, and exit"
    )
    flags.add_flags(train)
    checkpoints = commands.add_parser("checkpoints", help="look at a run's checkpoints")
    actions = checkpoints.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)
    listing = actions.add_parser("list", help="all checkpoints of a run, newest first")
    listing.add_argument("run", help="run folder or URL")
    inspect = actions.add_parser("inspect", help="everything one checkpoint records")
    inspect.add_argument("checkpoint", help="a checkpoint's .json, or a run for its newest one")
    for sub in (listing, inspect):
        sub.add_argument("--json", action="store_true", help="for programs")
        sub.add_argument("--verify", action="store_true", help="read every byte and compare hashes")
    status = commands.add_parser("status", help="the attempts of a run: where each ran, how far it came, how it ended")
    status.add_argument("run", help="run folder or URL")
    status.add_argument("--json", action="store_true", help="for programs")
    shard = commands.add_parser(
        "shard", help="make a sharded dataset of manifests and their files, for training from a bucket"
    )
    shard.add_argument("manifests", nargs="+", metavar="MANIFEST[::LANG]", help="paired manifests, paths or URLs")
    shard.add_argument("--output", required=True, help="folder or URL of the sharded dataset")
    shard.add_argument("--tokenizer", required=True, help="SentencePiece model that the text ids were made with")
    shard.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the stored vectors; bfloat16 halves the bytes, rounds, and makes another dataset (default: float32)",
    )
    shard.add_argument("--config", default="checkpoints/config.yaml", help="config.yaml of the model")
    shard.add_argument("--skip-bad-samples", action="store_true", help="leave bad samples out; the index names them")
    export = commands.add_parser("export", help="write gpt.pth, config.yaml and tokenizer for inference")
    export.add_argument("source", help="a run, or a checkpoint's .json")
    export.add_argument("--output-dir", required=True, help="folder for the export")
    export.add_argument("--tag", choices=("best", "final"), help="newest checkpoint with this tag; default: the newest")
    demo = commands.add_parser("demo", help="train, get preempted, resume, and compare bit for bit")
    demo.add_argument("--folder", default="demo_run", help="where to work (default: demo_run)")
    demo.add_argument(
        "--url", default="", help="where the runs go, for example s3://bucket/demos (default: the folder)"
    )
    return parser


def _train(given: argparse.Namespace, stop: StopSignals) -> int:
    started_at_s = time.monotonic()
    from indextts_job.legacy import flags

    if given.help_config:
        return _print_config_help()
    keys, notes = flags.overrides(given, os.environ)
    if given.grace_seconds is not None:
        keys["preemption.grace_seconds"] = given.grace_seconds
    if given.skip_bad_samples:
        keys["data.skip_bad_samples"] = True
    if given.list_checkpoints:
        return _list(str(keys.get("run", "trained_ckpts")), as_json=False, verify=False)
    from indextts_job.training.ahead import begin_downloads

    config = _configuration(given.settings, keys)
    begin_downloads(config)
    if config.preemption.spot_notices:
        begin(lambda: _watch_notices(stop), "spot notices")
    from indextts_job.report.console import ConsoleReport
    from indextts_job.report.events import Notice
    from indextts_job.training.run import run_attempt

    with ConsoleReport(sys.stdout) as console:
        for note in notes:
            console(Notice(step=0, topic="flag", message=note))
        return run_attempt(config, stop, console, started_at_s)


def _watch_notices(stop: StopSignals) -> None:
    from indextts_job.preemption.clouds import known_clouds
    from indextts_job.preemption.notices import watch

    watch(known_clouds(os.environ), stop)


def _configuration(settings: Sequence[str], flag_keys: Mapping[str, object]) -> Any:  # noqa: ANN401
    from indextts_job import config, files

    paths = [setting for setting in settings if "=" not in setting]
    dotted = dict(config.parse_override(setting) for setting in settings if "=" in setting)
    if len(paths) > 1:
        raise errors.ConfigError(f"{len(paths)} configuration files given ({', '.join(paths)}), expected one.")
    document: object = None
    where = "command line"
    if paths:
        where = paths[0]
        document = files.read_yaml(where, "run configuration", "the command line")
        if isinstance(document, Mapping) and "gpt" in document:
            raise errors.ConfigError(f"{where} describes the model, not a run. Give it with --config.")
    elif "data.train_manifests" not in {**flag_keys, **dotted}:
        # Nothing but a run was named: its newest checkpoint knows the rest.
        from indextts_job.training import resume

        run = str(dotted.get("run", flag_keys.get("run", "trained_ckpts")))
        source = str(dotted.get("resume.source", flag_keys.get("resume.source", "auto")))
        where = run if source in ("auto", "none") else source
        document = resume.recorded_config(where)
    layers = (("command line flags", flag_keys), ("command line", dotted))
    recorded_resume = {"resume.source": "auto", "resume.weights_only": False} if not paths and document else {}
    return config.build_config(document, where, [("recorded", recorded_resume), *layers])


def _print_config_help() -> int:
    from indextts_job.config_help import documented_defaults

    print(documented_defaults(), end="")  # noqa: T201
    return errors.EXIT_OK


def _list(run: str, as_json: bool, verify: bool) -> int:  # noqa: FBT001
    from indextts_job.checkpoint import describe
    from indextts_job.training import resume

    store, _ = resume.locate(run)
    rows = describe.rows(store, verify=verify)
    if as_json:
        print(json.dumps(rows, indent=1))  # noqa: T201
        return errors.EXIT_OK
    if not rows:
        print(f"{run}: no checkpoints")  # noqa: T201
        return errors.EXIT_OK
    from rich.console import Console
    from rich.table import Table

    from indextts_job.report.console import human_bytes

    table = Table("step", "epoch", "tags", "val total", "size", "created", "attempt", "verified", "name")
    for row in rows:
        validation = row.get("validation")
        table.add_row(
            str(row["step"]),
            f"{row['epoch']:.2f}" if "epoch" in row else "",
            ", ".join([*row["tags"], *(["superseded"] if row["superseded"] else [])]),
            f"{validation['total']:.4f}" if validation else "",
            human_bytes(row["bytes"]) if "bytes" in row else "",
            row.get("created", ""),
            str(row["attempt"]),
            {True: "yes", False: "NO", None: ""}[row["verified"]],
            row["name"],
        )
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(table)
    return errors.EXIT_OK


def _status(given: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from indextts_job import files
    from indextts_job.checkpoint.remote import open_storage
    from indextts_job.report.attempts import attempts, scheduler_text
    from indextts_job.retry import StorageConfig

    files.configure_object_stores(StorageConfig())
    rows = attempts(open_storage(given.run))
    if given.json:
        print(json.dumps(rows, indent=1))  # noqa: T201
        return errors.EXIT_OK
    if not rows:
        raise errors.ConfigError(f"{given.run}: no run here; it holds no attempts.")
    table = Table("attempt", "started", "scheduler", "node", "device", "steps", "committed", "ended", "how")
    for row in rows:
        how = f"{row['outcome']} ({row['exit_code']})" if row["outcome"] else "runs, or was killed"
        table.add_row(
            str(row["attempt"]),
            row["started"],
            scheduler_text(row.get("scheduler", {})),
            row["node"],
            row["device"],
            f"{row['from_step']} … {row['last_step']}",
            "" if row["committed_step"] is None else str(row["committed_step"]),
            row["ended"].partition(".")[0],
            how if row["outcome"] or row is rows[-1] else "killed",
        )
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(table)
    return errors.EXIT_OK


def _inspect(given: argparse.Namespace) -> int:
    import yaml

    from indextts_job.checkpoint import describe, retention
    from indextts_job.training import resume

    store, name = resume.locate(given.checkpoint)
    names = [name] if name else retention.current(store.names())
    if not names:
        raise errors.ConfigError(f"{given.checkpoint} holds no checkpoints.")
    manifest = store.manifest(names[0])
    document = dict(describe.details(manifest))
    if given.verify:
        store.verify(manifest)
        document["verified"] = True
    text = json.dumps(document, indent=1, ensure_ascii=False)
    print(text if given.json else yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True))  # noqa: T201
    return errors.EXIT_OK


def _shard(given: argparse.Namespace) -> int:
    from indextts_job import files
    from indextts_job.data.dataset import Limits
    from indextts_job.data.sharding import write_shards
    from indextts_job.data.sources import load_dataset
    from indextts_job.model.config import gpt_config
    from indextts_job.model.tokenizer import load_tokenizer
    from indextts_job.report.console import ConsoleReport
    from indextts_job.report.events import Notice
    from indextts_job.retry import StorageConfig

    files.configure_object_stores(StorageConfig())
    model = gpt_config(files.read_yaml(given.config, "model configuration", "--config"), given.config)
    limits = Limits(model, load_tokenizer(given.tokenizer).pieces)
    with ConsoleReport(sys.stdout) as console:
        dataset = load_dataset(
            given.manifests,
            limits,
            skip_bad_samples=given.skip_bad_samples,
            progress=lambda done, total: console.progress("checking data", done, total),
        )
        for sample in dataset.skipped:
            message = f"skipped bad sample {sample.id}: {sample.reason}"
            console(Notice(step=0, topic="data", message=message, warning=True))
        written = write_shards(
            dataset,
            given.output,
            lambda done, total: console.progress("sharding", done, total),
            dtype=given.dtype,
        )
        message = f"{len(dataset)} samples in {given.output}, fingerprint {written[:16]}; train with it as the manifest"
        console(Notice(step=0, topic="shards", message=message))
    return errors.EXIT_OK


def _export(given: argparse.Namespace) -> int:
    from indextts_job.checkpoint import retention
    from indextts_job.model.export import write_export
    from indextts_job.training import resume
    from indextts_job.training.state import BASE, WEIGHTS

    store, name = resume.locate(given.source)
    names = [name] if name else retention.current(store.names())
    names = [entry for entry in names if given.tag is None or given.tag in entry.tags]
    if not names:
        tagged = f" tagged {given.tag}" if given.tag else ""
        raise errors.ConfigError(f"{given.source} holds no checkpoint{tagged}. `checkpoints list` shows what there is.")
    manifest = store.manifest(names[0])
    tensors = store.load(manifest, (WEIGHTS, BASE))
    written = write_export(
        Path(given.output_dir),
        {key.removeprefix(WEIGHTS): value for key, value in tensors.items() if key.startswith(WEIGHTS)},
        {key.removeprefix(BASE): value for key, value in tensors.items() if key.startswith(BASE)},
        manifest.values,
        store.read_file(manifest, "tokenizer.model"),
    )
    for path in written:
        print(path)  # noqa: T201
    return errors.EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
