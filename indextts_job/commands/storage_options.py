"""Storage settings of commands other than `train`, with the same keys as a run's configuration.

Precedence, lowest first: defaults; the record of a local run (unless the environment names an endpoint); the `storage`
section of `--config RUN.yaml`; `storage.KEY=VALUE` on the command line.
"""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from indextts_job import config, errors
from indextts_job.commands.parser import STORAGE_SETTINGS, Parser
from indextts_job.redaction import STRUCK_OUT
from indextts_job.storage.config import StorageConfig

if TYPE_CHECKING:
    from indextts_job.storage.run_storage import RunStorage

TERMINAL_PATIENCE_S = 10.0
"""Limit of retries on a terminal. For a person a mistyped name is more likely than storage that is away."""
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def add_pair_options(parser: Parser) -> None:
    """Add the options about pairs that training has as `data.emotion` and `data.self_pairs`."""
    parser.add_argument(
        "--emotion", choices=("prompt", "target"), default="prompt", help="as data.emotion (default: prompt)"
    )
    parser.add_argument("--self-pairs", action="store_true", help="as data.self_pairs: a prompt may be its target")


def add_storage_options(parser: Parser, *, config_is_the_models: bool = False) -> None:
    """Let a command take `storage.KEY=VALUE` and a run's configuration.

    Args:
        parser: Parser of the command.
        config_is_the_models: Whether `--config` names the model's config.yaml; the run's is `--run-config` then.
    """
    names = ("--run-config",) if config_is_the_models else ("--config", "--run-config")
    text = "configuration of the run: its storage settings are used; storage.KEY=VALUE overrides them"
    parser.add_argument(*names, dest="run_config", default="", metavar="RUN.yaml", help=text)
    parser.takes_storage = True


def configure(given: argparse.Namespace, run: str = "") -> StorageConfig:
    """The storage settings of a command, also set for this process.

    Args:
        given: Arguments of the command.
        run: Folder or URL of the run that it reads; empty = none.

    Raises:
        ConfigError: An unknown key, a wrong value, a configuration that cannot be read.
    """
    from indextts_job.storage import files
    from indextts_job.storage.patience import limit_patience

    dotted = dict(map(config.parse_override, getattr(given, STORAGE_SETTINGS, ())))
    overrides = {key.removeprefix("storage."): value for key, value in dotted.items()}
    # The configuration may itself lie in a bucket that only the overrides say how to reach.
    files.configure_object_stores(config.checked_storage(overrides, "command line"))
    layers = {**_section(given.run_config), **overrides}
    if run and files.is_local(run) and not any(os.environ.get(name) for name in ENDPOINT_VARIABLES):
        layers = {**_recorded(run), **layers}
    if "retry_seconds" not in overrides and sys.stdout.isatty():
        # Only on a terminal, and only where nothing else was asked for: scripts keep the patience of the run.
        layers["retry_seconds"] = TERMINAL_PATIENCE_S
        limit_patience(TERMINAL_PATIENCE_S)
    storage = config.checked_storage(layers, "storage settings")
    files.configure_object_stores(storage)
    return storage


def open_run(given: argparse.Namespace) -> "RunStorage":
    """The storage of the run that a command reads.

    Raises:
        ConfigError: There is no run.
    """
    storage = open_output(given)
    demand_run(storage, given.run)
    return storage


def open_output(given: argparse.Namespace) -> "RunStorage":
    """The storage of what a command looks at: a run, or a preparation."""
    from indextts_job.storage.remote_storage import open_storage

    return open_storage(given.run, configure(given, given.run))


def demand_run(storage: "RunStorage", run: str) -> None:
    """Check that there is a run.

    Raises:
        ConfigError: There is none.
    """
    from indextts_job.checkpoint.fence import FOLDER
    from indextts_job.checkpoint.manifest import MANIFESTS

    if not storage.list(FOLDER) and not storage.list(MANIFESTS):
        raise no_run(run)


def no_run(run: str) -> errors.ConfigError:
    """The error for a place without a run."""
    advice = "Give the folder or URL of a run."
    if "://" in run:
        advice = "Give the URL of a run; a store other than AWS needs storage.endpoint_url=URL or --config RUN.yaml."
    return errors.ConfigError(f"{run}: no run here; it holds no attempts and no checkpoints. {advice}")


def _section(path: str) -> dict[str, Any]:
    """The storage settings of a run's configuration. The rest is checked too, so that a wrong file is noticed."""
    if not path:
        return {}
    from indextts_job.commands.run_file import read_run_file

    # Read with the storage settings of the command line, which `configure` has set.
    document = read_run_file(path, "--config").document
    storage = config.RunConfig.from_json(document, path).storage
    return {key: getattr(storage, key) for key in document.get("storage") or {}}


def _recorded(run: str) -> dict[str, Any]:
    """The storage settings in the newest readable checkpoint of a local run; empty without one.

    An unreadable checkpoint is no error here: the command itself reports it.
    """
    from indextts_job.checkpoint import retention
    from indextts_job.checkpoint.manifest import MANIFESTS, parse_file_name, parse_manifest
    from indextts_job.storage.local_storage import LocalStorage

    storage = LocalStorage(run)
    try:
        names = {parse_file_name(file): file for file in storage.list(MANIFESTS)}
    except (OSError, errors.IndexTTSJobError):
        return {}
    for name in retention.current([name for name in names if name]):
        try:
            manifest = parse_manifest(storage.read(f"{MANIFESTS}/{names[name]}"), names[name])
            return _usable_endpoint(manifest.values.config_section("storage"), run)
        except (OSError, errors.IndexTTSJobError):
            continue
    return {}


def _usable_endpoint(section: Mapping[str, Any], run: str) -> dict[str, Any]:
    """The recorded endpoint of a run; empty when there is none, or when a secret was removed from it.

    Raises:
        ConfigError: It is no address of a server.
    """
    endpoint = config.checked_storage({"endpoint_url": section.get("endpoint_url", "")}, run).endpoint_url
    return {"endpoint_url": endpoint} if endpoint and STRUCK_OUT not in endpoint else {}
