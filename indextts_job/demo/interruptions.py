"""The demo: two equal runs, of which one is preempted and killed; both must end with the same bits."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import CheckpointManifest
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.demo.stage import Headings, command, demand_own_folder, shown, sparkline
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.errors import EXIT_OK, EXIT_SOFTWARE, IndexTTSJobError
from indextts_job.model.versions import V2_0, ModelVersion
from indextts_job.report.journal import EVENTS, SAMPLES, committed_samples
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import joined, pause

PREEMPT_AFTER_STEP = 70
KILL_AFTER_STEP = 145


def run_demo(folder: Path, url: str = "", version: ModelVersion = V2_0) -> int:
    """Run the demo with real processes and real signals.

    Args:
        folder: Working folder; must be new, or the folder of an earlier demo, which is removed.
        url: Folder or URL below which the runs get a new folder; empty = the working folder.
        version: Version of the model.

    Returns:
        0 when both runs end with the same bits, otherwise 70.
    """
    console = Console(highlight=False, soft_wrap=True)  # rich would colour numbers and break the lines of the log
    demand_own_folder(folder)
    heading = Headings(console)
    heading(
        f"A small dataset in the real formats of {version}: Amharic text, codes that depend on it, a base checkpoint"
    )
    world = make_world(folder / "data", WorldSize(version=version))
    config = _write_config(folder, world)
    console.print(f"            {config}: the run's configuration")
    heading("Run 1: undisturbed")
    runs = f"{url.rstrip('/')}/demo-{datetime.now(UTC):%Y%m%d-%H%M%S}" if url else str(folder)
    files.configure_object_stores(StorageConfig())
    undisturbed = f"{runs}/undisturbed"
    _train(console, config, undisturbed)
    heading(
        f"Run 2: SIGTERM in the middle of step {PREEMPT_AFTER_STEP + 1} (the node is wanted back), "
        f"SIGKILL after step {KILL_AFTER_STEP} (the node is gone); the launcher starts it again"
    )
    preempted = f"{runs}/preempted"
    # The disturber finds the trainer by what the run writes, so it works with a bucket too.
    disturber = threading.Thread(target=_disturb, args=(open_storage(preempted),), daemon=True)
    disturber.start()
    _train(console, config, preempted)
    joined(disturber, math.inf)
    heading("Did it matter?")
    return _verdict(console, undisturbed, preempted, config)


def _write_config(folder: Path, world: World) -> Path:
    document = {
        "inputs": {
            "model_config": str(world.model_config),
            "base_checkpoint": str(world.base_checkpoint),
            "tokenizer": str(world.tokenizer),
        },
        "data": {
            "train_manifests": [f"{world.train_manifest}::am"],
            "validation_manifests": [f"{world.validation_manifest}::am"],
        },
        "recipe": {"global_batch_samples": 16},
        "schedule": {"learning_rate": 3e-3, "warmup_steps": 20, "epochs": 20},
        "validation": {"interval_steps": 75},
        # Neither interruption falls on a step with a checkpoint: the kill must cost some steps.
        "checkpoint": {"interval_steps": 50},
        # Small enough for several micro-batches per step: the signal shall come in the middle of a cycle.
        "hardware": {"capacity_tokens": 256},
        # The sample log is what the two runs are compared by, and what the disturber counts steps by.
        "report": {"log_interval_steps": 25, "sample_log": True},
        "storage": {"log_interval_seconds": 0.1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _train(console: Console, config: Path, run: str) -> None:
    # With the launcher, as a user would: it starts the trainer again after the preemption and after the kill.
    code = shown(console, [sys.executable, "-m", "indextts_launch", "local", str(config), f"run={run}"])
    if code != EXIT_OK:
        raise IndexTTSJobError(f"the run in {run} ended with {code}; its output is above.")


def _disturb(storage: RunStorage) -> None:
    """Do what a spot node does: a signal in the middle of a cycle, and in the next attempt a kill."""
    _signal_after(storage, 1, PREEMPT_AFTER_STEP, signal.SIGTERM)
    _signal_after(storage, 2, KILL_AFTER_STEP, signal.SIGKILL)


def _signal_after(storage: RunStorage, attempt: int, step: int, number: signal.Signals) -> None:
    seen = _watch_steps(storage, f"{SAMPLES}/attempt-{attempt:04d}.jsonl", step)
    # Half a step later the trainer is in the middle of the next cycle's micro-batches.
    if len(seen) > 10:
        (first, since_s), (last, now_s) = seen[-10], seen[-1]
        pause((now_s - since_s) / (last - first) / 2)
    record = json.loads(storage.read(f"attempts/{attempt:04d}.json"))
    os.kill(record["pid"], number)


def _watch_steps(storage: RunStorage, key: str, until: int) -> list[tuple[int, float]]:
    """Wait until a sample log has the step `until`; gives the steps seen and the instants at which they were seen."""
    seen: list[tuple[int, float]] = []
    last = 0
    while last < until:
        pause(0.002 if files.is_local(storage.url) else 0.05)
        done = _last_step(storage, key)
        if done > last:
            seen.append((done, time.monotonic()))
            last = done
    return seen


def _last_step(storage: RunStorage, key: str) -> int:
    """The last step in a sample log; 0 while there is none."""
    try:
        lines = storage.read(key).splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    # The trainer may be writing the last line at this moment.
    whole = [line for line in lines if line.endswith(b"\n")]
    return int(json.loads(whole[-1]).get("step", 0)) if whole else 0


def _final(storage: RunStorage) -> CheckpointManifest:
    store = CheckpointStore(storage)
    return store.manifest(retention.current(store.names())[0])


def _verdict(console: Console, undisturbed: str, preempted: str, config: Path) -> int:
    storages = open_storage(undisturbed), open_storage(preempted)
    one, two = (_final(storage) for storage in storages)
    samples_one, samples_two = (committed_samples(_logs(storage, SAMPLES)) for storage in storages)
    names_one, names_two = _in_order(samples_one), _in_order(samples_two)
    epochs = yaml.safe_load(config.read_text(encoding="utf-8"))["schedule"]["epochs"]
    repeated, missing = _miscounted(names_one, names_two, epochs)
    same_order = names_one == names_two
    # Objects are named by the hash of their bytes, so equal names are equal bits.
    same_bits = one.objects == two.objects
    same_history = one.values.history == two.values.history
    attempts = len(storages[1].list("attempts"))
    rows = [
        ("mel_loss", f"{_learning_curve(storages[0])}: it learns to read"),
        ("interrupted", f"{attempts - 1} times, {attempts} attempts"),
        ("samples", f"{len(names_two)} used in {len(samples_two)} steps: {repeated} repeated, {missing} missing"),
        ("order", _yes(same_order, "the same samples in the same steps")),
        ("weights", _yes(same_bits, f"bit for bit the same: {_digest(one)} = {_digest(two)}")),
        ("history", _yes(same_history, "the same losses, validations and best checkpoint")),
    ]
    for name, text in rows:
        console.print(f"  {name:<12} {text}")
    good = all((same_bits, same_history, same_order, not repeated, not missing))
    _print_conclusion(console, preempted, config.parent, good=good)
    return EXIT_OK if good else EXIT_SOFTWARE


def _in_order(samples: Mapping[int, Sequence[str]]) -> list[str]:
    """The sample ids of all steps, one step after the other."""
    return [name for _, names in sorted(samples.items()) for name in names]


def _miscounted(expected: Sequence[str], used: Sequence[str], epochs: int) -> tuple[int, int]:
    """How often samples were repeated, and how often they are missing: each is due once per epoch."""
    counts = Counter(used)
    surplus = [counts[name] - epochs for name in set(expected)]
    return sum(max(0, more) for more in surplus), sum(max(0, -more) for more in surplus)


def _learning_curve(storage: RunStorage) -> str:
    events = [json.loads(line) for log in _logs(storage, EVENTS) for line in log.splitlines()]
    losses = [event["losses"]["mel_loss"] for event in events if event["event"] == "TrainLine"]
    return f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}"


def _print_conclusion(console: Console, preempted: str, folder: Path, *, good: bool) -> None:
    program, board = command("indextts-job"), command("tensorboard")
    console.print(
        f"\n  [bold]{'The interruptions left no trace.' if good else 'THE RUNS DIFFER: this is a defect.'}[/]\n"
        f"  Look around:  {program} status {preempted} --html {folder / 'run.html'}\n"
        f"                {program} checkpoints list {preempted}\n"
        f"                {board} --logdir {preempted}\n"
        f"                {program} export {preempted} --output-dir {folder / 'export'}"
    )


def _logs(storage: RunStorage, folder: str) -> list[bytes]:
    """The logs of all attempts, oldest first."""
    return [storage.read(f"{folder}/{name}") for name in sorted(storage.list(folder))]


def _digest(manifest: CheckpointManifest) -> str:
    """The first digits of the hash of an object with weights."""
    stored = next(tensor.object for key, tensor in manifest.tensors.items() if key.startswith("model/"))
    return manifest.objects[stored].xxh3[:16]


def _yes(good: bool, text: str) -> str:  # noqa: FBT001
    return f"[green]yes[/], {text}" if good else f"[red]NO[/], not {text}"
