"""Configurations of small runs, and what they left behind."""

import json
from pathlib import Path
from typing import Any

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import CheckpointManifest
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.config import RunConfig, build_config
from indextts_job.demo.world import World, WorldSize
from indextts_job.parsing import plain
from indextts_job.report.journal import EVENTS, SAMPLES, committed_samples
from indextts_job.storage.remote_storage import open_storage

TINY = WorldSize(samples=40, validation_samples=12, width=32, layers=2, heads=2, words=(1, 3))


def config_for(world: World, run: str | Path, **keys: object) -> RunConfig:
    """A run of 24 steps: 3 to 4 micro-batches each, validation every 5 steps, a save every 4.

    Args:
        world: Its data.
        run: Folder or URL.
        keys: Dotted keys with `__` for the dot, overriding.
    """
    base: dict[str, object] = {
        "run": str(run),
        "inputs.model_config": str(world.model_config),
        "inputs.base_checkpoint": str(world.base_checkpoint),
        "inputs.tokenizer": str(world.tokenizer),
        "data.train_manifests": [str(world.train_manifest)],
        "data.validation_manifests": [str(world.validation_manifest)],
        "recipe.global_batch_samples": 7,
        "schedule.learning_rate": 3e-3,
        "schedule.warmup_steps": 4,
        "schedule.max_steps": 24,
        "validation.interval_steps": 5,
        "checkpoint.interval_steps": 4,
        "hardware.capacity_tokens": 200,
        "hardware.threads": 1,
        "report.log_interval_steps": 3,
        "report.sample_log": True,
        "storage.retry_seconds": 0,
        # What is damaged in a bucket has to be noticed there.
        "storage.node_copies": False,
    }
    given = {key.replace("__", "."): value for key, value in keys.items()}
    return build_config(None, "test", [("test", base), ("test", given)])


def store_of(run: str | Path) -> CheckpointStore:
    return CheckpointStore(open_storage(str(run)))


def newest(run: str | Path) -> CheckpointManifest:
    store = store_of(run)
    return store.manifest(retention.current(store.names())[0])


def state_of(manifest: CheckpointManifest) -> dict[str, Any]:
    """Everything that must be bit-identical: hashes of weights, moments and base tensors, and the history."""
    return {
        "step": manifest.name.step,
        "objects": {key: stored.xxh3 for key, stored in manifest.objects.items()},
        "history": plain(manifest.values.history),
        "scaler": manifest.values.scaler,
    }


def events(run: Path, kind: str = "") -> list[dict[str, Any]]:
    found = []
    for path in sorted((run / EVENTS).iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if not kind or event["event"] == kind:
                found.append(event)
    return found


def samples(run: Path) -> dict[int, list[str]]:
    """Sample ids of every committed step."""
    return committed_samples([path.read_bytes() for path in sorted((run / SAMPLES).iterdir())])


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values of one TensorBoard curve, over all attempts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "logs/train"))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars(tag)]
