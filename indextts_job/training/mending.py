"""What all checkpoints of a run share, the base's tensors, compared with its hashes and written again where damaged.

They are stored once and never change, so one lost object would be a hole in every checkpoint to come: training does
not read most of them, and an export would fail weeks later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from indextts_job import files
from indextts_job.checkpoint.manifest import CheckpointManifest, StoredObject
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import IndexTTSJobError
from indextts_job.model.base_checkpoint import load_base_checkpoint
from indextts_job.model.config import gpt_config
from indextts_job.training.state import BASE


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of the objects that all checkpoints share."""

    told: tuple[str, ...] = ()
    """What the user should know; nothing when nothing was damaged."""
    whole: bool = True
    """Whether they are what they should be now."""


ADVICE = "Restore these files from a copy of the run; until then an export of it fails."


def repair(base_checkpoint: str) -> Callable[[CheckpointStore, CheckpointManifest], Repaired]:
    """A function that mends the shared objects of a checkpoint from the base that the run started from.

    Args:
        base_checkpoint: Path or URL of the base's `gpt.pth`.
    """

    def mend(store: CheckpointStore, manifest: CheckpointManifest) -> Repaired:
        shared = {entry.object for key, entry in manifest.tensors.items() if key.startswith(BASE)}
        damaged = store.damaged(manifest.objects[key] for key in sorted(shared))
        return _mended(store, manifest, damaged, base_checkpoint) if damaged else Repaired()

    return mend


def _mended(
    store: CheckpointStore, manifest: CheckpointManifest, damaged: list[StoredObject], base_checkpoint: str
) -> Repaired:
    names = ", ".join(Path(one.key).name[:20] + "…" for one in damaged[:3])
    lost = f"{len(damaged)} objects with tensors of the base were lost or damaged ({names})"
    try:
        config = gpt_config(manifest.values["model_config"], "the checkpoint")
        tensors = load_base_checkpoint(base_checkpoint, config).tensors if _there(base_checkpoint) else {}
    except IndexTTSJobError:
        tensors = {}
    left = [one for one in damaged if not _restored(store, manifest, one, tensors)]
    if not left:
        return Repaired((f"{lost}; written again from {base_checkpoint}, every byte as before",))
    why = "is not the base that this run started from" if tensors else "cannot be read"
    return Repaired(
        (f"{lost}; {len(left)} could not be written again: {base_checkpoint} {why}. {ADVICE}",), whole=False
    )


def _there(url: str) -> bool:
    return bool(url) and files.exists(url)


def _restored(
    store: CheckpointStore, manifest: CheckpointManifest, stored: StoredObject, tensors: Mapping[str, Tensor]
) -> bool:
    names = [key for key, entry in manifest.tensors.items() if entry.object == stored.key]
    if not all(name.removeprefix(BASE) in tensors for name in names):
        return False
    try:
        return store.restore(stored, {name: tensors[name.removeprefix(BASE)] for name in names})
    except IndexTTSJobError:  # something else lies in its place, say
        return False
