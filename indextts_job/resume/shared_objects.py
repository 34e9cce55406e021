"""What all checkpoints of a run share, compared with its hashes and written again where damaged.

That is the base's tensors and the tokenizer. They are stored once and never change, so one lost object would be a hole
in every checkpoint to come: training does not read most of them, and an export would fail weeks later.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from indextts_job.checkpoint.manifest import CheckpointManifest, StoredObject
from indextts_job.checkpoint.objects import serialised
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import IndexTTSJobError
from indextts_job.model.base_checkpoint import load_base_checkpoint
from indextts_job.model.config import gpt_config
from indextts_job.storage import files
from indextts_job.training.state import BASE


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of the objects that all checkpoints share."""

    told: tuple[str, ...] = ()
    """What the user should know; nothing when nothing was damaged."""
    whole: bool = True
    """Whether they are what they should be now."""


ADVICE = "Restore these files from a copy of the run; until then an export of it fails."


def repair(base_checkpoint: str, tokenizer: str) -> Callable[[CheckpointStore, CheckpointManifest], Repaired]:
    """A function that mends the shared objects of a checkpoint from the files that the run started from.

    Args:
        base_checkpoint: Path or URL of the base's `gpt.pth`.
        tokenizer: Path or URL of the tokenizer.
    """

    def mend(store: CheckpointStore, manifest: CheckpointManifest) -> Repaired:
        of_files = set(manifest.files.values())
        of_base = {entry.object for key, entry in manifest.tensors.items() if key.startswith(BASE)}
        damaged = store.damaged(manifest.objects[key] for key in sorted(of_base | of_files))
        parts = [
            _mended(what, url, [one for one in damaged if one.key in keys], partial(restored, store, manifest, url))
            for what, url, keys, restored in (
                ("tensors of the base", base_checkpoint, of_base, _restored_tensors),
                ("the tokenizer", tokenizer, of_files, _restored_file),
            )
        ]
        return Repaired(tuple(told for part in parts for told in part.told), all(part.whole for part in parts))

    return mend


def _mended(
    what: str, url: str, damaged: list[StoredObject], restored: Callable[[list[StoredObject]], list[StoredObject]]
) -> Repaired:
    """What became of damaged objects of one kind; `restored` gives those that it could write again."""
    if not damaged:
        return Repaired()
    names = ", ".join(Path(one.key).name[:20] + "…" for one in damaged[:3])
    lost = f"{len(damaged)} objects with {what} were lost or damaged ({names})"
    try:
        left = len(damaged) - len(restored(damaged))
    except IndexTTSJobError as error:
        return Repaired((f"{lost} and could not be written again: {error} {ADVICE}",), whole=False)
    if not left:
        return Repaired((f"{lost}; written again from {url}, every byte as before",))
    why = f"{url} is not what this run started from"
    return Repaired((f"{lost}; {left} could not be written again: {why}. {ADVICE}",), whole=False)


def _restored_tensors(
    store: CheckpointStore, manifest: CheckpointManifest, url: str, damaged: list[StoredObject]
) -> list[StoredObject]:
    config = gpt_config(manifest.values.model_config, "the checkpoint")
    tensors = load_base_checkpoint(url, config).tensors
    done = []
    for stored in damaged:
        names = [key for key, entry in manifest.tensors.items() if entry.object == stored.key]
        if all(name.removeprefix(BASE) in tensors for name in names):
            data = serialised({name: tensors[name.removeprefix(BASE)] for name in names})
            if store.restore(stored, data):
                done.append(stored)
    return done


def _restored_file(
    store: CheckpointStore, manifest: CheckpointManifest, url: str, damaged: list[StoredObject]
) -> list[StoredObject]:
    del manifest
    data = files.read_input(url, "tokenizer", "inputs.tokenizer")
    return [stored for stored in damaged if store.restore(stored, data)]
