"""Verifies the objects that all checkpoints of a run share, and writes damaged ones again.

These are the base tensors and the tokenizer. They are stored once and never change, so one lost object is missing in
every later checkpoint. Training does not read most of them, so without this check an export would fail weeks later.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from indextts_job.checkpoint.manifest import CheckpointManifest, StoredObject
from indextts_job.checkpoint.object_layout import layout_of
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE
from indextts_job.errors import IndexTTSJobError
from indextts_job.hashing import Buffer, identity_hash, integrity_hash
from indextts_job.model.base_checkpoint import split_rows
from indextts_job.model.base_of_run import load_base
from indextts_job.model.config import gpt_config
from indextts_job.storage import files


@dataclass(frozen=True, slots=True)
class Repaired:
    """The result of a verification, and of a repair if one was needed."""

    told: tuple[str, ...] = ()
    """Messages for the user; none when nothing was damaged."""
    whole: bool = True
    """Whether all shared objects are intact now."""


ADVICE = "Restore these files from a copy of the run; until then an export of it fails."


def repair(base_checkpoint: str, tokenizer: str) -> Callable[[CheckpointStore, CheckpointManifest], Repaired]:
    """A function that writes the shared objects of a checkpoint again, from the files that the run started from.

    Args:
        base_checkpoint: Path or URL of the base's `gpt.pth`.
        tokenizer: Path or URL of the tokenizer.
    """

    def run(store: CheckpointStore, manifest: CheckpointManifest) -> Repaired:
        kinds = (
            _Kind("tensors of the base", base_checkpoint, _objects_of_base(manifest), _base_objects),
            _Kind("the tokenizer", tokenizer, set(manifest.files.values()), _tokenizer_objects),
        )
        # Together: one listing for both kinds.
        shared = set().union(*(kind.keys for kind in kinds))
        damaged = store.damaged(manifest.objects[key] for key in sorted(shared))
        results = [_repaired(store, manifest, kind, damaged) for kind in kinds]
        return Repaired(tuple(told for result in results for told in result.told), all(one.whole for one in results))

    return run


@dataclass(frozen=True, slots=True)
class _Kind:
    """Objects that can be made again from one file."""

    what: str
    url: str
    keys: set[str]
    made: "Callable[[CheckpointManifest, str, Sequence[StoredObject]], Iterator[tuple[StoredObject, Buffer]]]"
    """Makes the bytes of each object from the file at `url`."""


def _objects_of_base(manifest: CheckpointManifest) -> set[str]:
    return {entry.object for key, entry in manifest.tensors.items() if key.startswith(BASE)}


def _repaired(
    store: CheckpointStore, manifest: CheckpointManifest, kind: _Kind, all_damaged: Sequence[StoredObject]
) -> Repaired:
    """Write the damaged objects of one kind again."""
    damaged = [one for one in all_damaged if one.key in kind.keys]
    if not damaged:
        return Repaired()
    names = ", ".join(Path(one.key).name[:20] + "…" for one in damaged[:3])
    lost = f"{len(damaged)} objects with {kind.what} were lost or damaged ({names})"
    try:
        # `restore` compares the hash, so a file that is not the original writes nothing.
        restored = sum(store.restore(stored, data) for stored, data in kind.made(manifest, kind.url, damaged))
    # The file of the start may be gone. Training does not need it, so this is a message.
    except IndexTTSJobError as error:
        return Repaired((f"{lost} and could not be written again: {error} {ADVICE}",), whole=False)
    return _result(lost, kind.url, len(damaged) - restored)


def _result(lost: str, url: str, left: int) -> Repaired:
    if not left:
        return Repaired((f"{lost}; written again from {url}, every byte as before",))
    why = f"{url} is not what this run started from"
    return Repaired((f"{lost}; {left} could not be written again: {why}. {ADVICE}",), whole=False)


def _base_objects(
    manifest: CheckpointManifest, url: str, wanted: Sequence[StoredObject]
) -> Iterator[tuple[StoredObject, Buffer]]:
    tensors = {BASE + key: value for key, value in _base_as_at_the_start(manifest, url).items()}
    for stored in wanted:
        # The same tensors in one object give the same bytes again.
        names = [key for key, entry in manifest.tensors.items() if entry.object == stored.key]
        # A base file that lacks a tensor is another file; its objects count as not restored.
        if tensors.keys() >= set(names):
            part = {name: tensors[name] for name in names}
            yield stored, layout_of(part).filled(part)


def _base_as_at_the_start(manifest: CheckpointManifest, url: str) -> Mapping[str, Tensor]:
    """The tensors of a base as a run starts from them: of an export, the rows that runs have added stand apart."""
    document = manifest.values.model_config
    base, _ = split_rows(load_base(url, gpt_config(document, "the checkpoint"), document, "the checkpoint"))
    return base.tensors


def other_base(manifest: CheckpointManifest, url: str) -> tuple[str, str] | None:
    """Whether a file is another base than the one that a run keeps.

    Args:
        manifest: A checkpoint of the run.
        url: The file, run or checkpoint that is named as base now.

    Returns:
        Content hashes of the run's base and of the file's; None if they are equal.

    Raises:
        IndexTTSJobError: The file is not there, or does not fit the model.
    """
    own = [manifest.objects[key] for key in sorted(_objects_of_base(manifest))]
    made = [integrity_hash(data) for _, data in _base_objects(manifest, url, own)]
    kept, found = (identity_hash("".join(hashes).encode()) for hashes in ([stored.xxh3 for stored in own], made))
    return None if kept == found else (kept, found)


def _tokenizer_objects(
    _manifest: CheckpointManifest, url: str, damaged: Sequence[StoredObject]
) -> Iterator[tuple[StoredObject, Buffer]]:
    data = files.read_input(url, "tokenizer", "inputs.tokenizer")
    for stored in damaged:
        yield stored, data
