"""The demo: one run undisturbed, one preempted and killed; both must end with the same bits."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import CheckpointManifest
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.errors import EXIT_OK, EXIT_SOFTWARE, ConfigError, IndexTTSJobError
from indextts_job.report.journal import EVENTS, SAMPLES, committed_samples
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import joined, pause

PREEMPT_AFTER_STEP = 70
KILL_AFTER_STEP = 145
_BARS = "▁▂▃▄▅▆▇█"


def run_demo(folder: Path, url: str = "") -> int:
    """Show what the trainer promises, on real processes and real signals.

    Args:
        folder: Where to work; must be new, or an earlier demo's.
        url: Where the runs go, below a new name; empty = the folder.

    Returns:
        0 when both runs end with the same bits, else 70.
    """
    console = Console(highlight=False, soft_wrap=True)
    _demand_own_folder(folder)
    heading = _Headings(console)
    heading("A small dataset in the real formats: Amharic text, codes that depend on it, a base checkpoint")
    world = make_world(folder / "data", WorldSize())
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
    disturber = threading.Thread(target=_disturb, args=(open_storage(preempted),), daemon=True)
    disturber.start()
    _train(console, config, preempted)
    joined(disturber, math.inf)
    heading("Did it matter?")
    return _verdict(console, undisturbed, preempted, config)


class _Headings:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0

    def __call__(self, text: str) -> None:
        self._number += 1
        self._console.print(f"\n[bold]{self._number}  {text}[/]")


def _demand_own_folder(folder: Path) -> None:
    """Refuse a folder with anything but an earlier demo in it; remove that."""
    mark = folder / ".indextts-job-demo"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise ConfigError(f"{folder} is not empty and not an earlier demo. Give another one: --folder PATH.")
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


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
        "checkpoint": {"interval_steps": 50},
        "hardware": {"capacity_tokens": 256},
        "report": {"log_interval_steps": 25, "sample_log": True},
        "storage": {"log_interval_seconds": 0.1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _train(console: Console, config: Path, run: str) -> None:
    command = [sys.executable, "-m", "launch", "local", str(config), f"run={run}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout or ():
            console.print(f"  [dim]|[/] {escape(line.rstrip())}")
    if process.returncode != 0:
        raise IndexTTSJobError(f"the run in {run} ended with {process.returncode}; its output is above.")


def _disturb(storage: RunStorage) -> None:
    """Do to the trainer what a spot node does: a signal in the middle of a cycle, later a kill."""
    _signal_after(storage, 1, PREEMPT_AFTER_STEP, signal.SIGTERM)
    _signal_after(storage, 2, KILL_AFTER_STEP, signal.SIGKILL)


def _signal_after(storage: RunStorage, attempt: int, step: int, number: signal.Signals) -> None:
    seen: list[tuple[int, float]] = []
    while not seen or seen[-1][0] < step:
        pause(0.002 if files.is_local(storage.url) else 0.05)
        done = _last_step(storage, f"{SAMPLES}/attempt-{attempt:04d}.jsonl")
        if done and (not seen or done > seen[-1][0]):
            seen.append((done, time.monotonic()))
    # Half a step later the next cycle is in the middle of its micro-batches.
    if len(seen) > 10:
        (first, since_s), (last, now_s) = seen[-10], seen[-1]
        pause((now_s - since_s) / (last - first) / 2)
    record = json.loads(storage.read(f"attempts/{attempt:04d}.json"))
    os.kill(record["pid"], number)


def _last_step(storage: RunStorage, key: str) -> int:
    """The last step that a sample log tells of; 0 as long as there is none."""
    try:
        lines = storage.read(key).splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    whole = [line for line in lines if line.endswith(b"\n")]
    return int(json.loads(whole[-1]).get("step", 0)) if whole else 0


def _final(storage: RunStorage) -> CheckpointManifest:
    store = CheckpointStore(storage)
    return store.manifest(retention.current(store.names())[0])


def _verdict(console: Console, undisturbed: str, preempted: str, config: Path) -> int:
    storages = open_storage(undisturbed), open_storage(preempted)
    one, two = (_final(storage) for storage in storages)
    samples = [committed_samples(_logs(storage, SAMPLES)) for storage in storages]
    positions = [[name for _, names in sorted(steps.items()) for name in names] for steps in samples]
    # Every sample is due once per epoch; anything else was repeated or lost.
    epochs = yaml.safe_load(config.read_text(encoding="utf-8"))["schedule"]["epochs"]
    counts = {name: positions[1].count(name) for name in set(positions[0])}
    repeated = sum(max(0, count - epochs) for count in counts.values())
    missing = sum(max(0, epochs - count) for count in counts.values())
    same_bits = one.objects == two.objects
    same_history = one.values.history == two.values.history
    attempts = len(storages[1].list("attempts"))
    events = [json.loads(line) for log in _logs(storages[0], EVENTS) for line in log.splitlines()]
    losses = [event["losses"]["mel_loss"] for event in events if event["event"] == "TrainLine"]
    rows = [
        ("mel_loss", f"{losses[0]:.3f} {_curve(losses)} {losses[-1]:.3f}: it learns to read"),
        ("interrupted", f"{attempts - 1} times, {attempts} attempts"),
        ("samples", f"{len(positions[1])} used in {len(samples[1])} steps: {repeated} repeated, {missing} missing"),
        ("order", _yes(positions[0] == positions[1], "the same samples in the same steps")),
        ("weights", _yes(same_bits, f"bit for bit the same: {_digest(one)} = {_digest(two)}")),
        ("history", _yes(same_history, "the same losses, validations and best checkpoint")),
    ]
    for name, text in rows:
        console.print(f"  {name:<12} {text}")
    good = same_bits and same_history and positions[0] == positions[1] and not repeated and not missing
    program, board = _command("indextts-job"), _command("tensorboard")
    console.print(
        f"\n  [bold]{'The interruptions left no trace.' if good else 'THE RUNS DIFFER: this is a defect.'}[/]\n"
        f"  Look around:  {program} status {preempted} --html {config.parent / 'run.html'}\n"
        f"                {program} checkpoints list {preempted}\n"
        f"                {board} --logdir {preempted}\n"
        f"                {program} export {preempted} --output-dir {config.parent / 'export'}"
    )
    return EXIT_OK if good else EXIT_SOFTWARE


def _command(name: str) -> str:
    """How to call an installed program from here, inside its virtual environment or not."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).parent / name)


def _logs(storage: RunStorage, folder: str) -> list[bytes]:
    """Logs of all attempts, oldest first."""
    return [storage.read(f"{folder}/{name}") for name in sorted(storage.list(folder))]


def _curve(values: list[float]) -> str:
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def _digest(manifest: CheckpointManifest) -> str:
    stored = next(tensor.object for key, tensor in manifest.tensors.items() if key.startswith("model/"))
    return manifest.objects[stored].sha256[:16]


def _yes(good: bool, text: str) -> str:  # noqa: FBT001
    return f"[green]yes[/], {text}" if good else f"[red]NO[/], not {text}"
