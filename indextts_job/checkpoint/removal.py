"""What a run no longer needs: checkpoints that retention does not keep, and the remains of interrupted saves."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, OBJECTS, SHARED, is_object_key
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import DataError
from indextts_job.storage.run_storage import PROBES, StoredFile

FURTHER_FOLDERS = ("attempts", "hardware")
"""Other folders of a run in which killed writers may leave temporary files."""
SAFE_AGE_S = 3600.0
"""Objects that no manifest names are removed only when older: they may belong to a save in progress."""


def retain(store: CheckpointStore, keep: int, untouchable: Iterable[CheckpointName] = ()) -> list[CheckpointName]:
    """Remove checkpoints that need not be kept, and objects that no other checkpoint names.

    Args:
        store: The run's checkpoints.
        keep: Newest checkpoints to keep.
        untouchable: Checkpoints that could not be read; another program may be able to.

    Returns:
        The removed ones.
    """
    spared = set(untouchable)
    doomed = [name for name in retention.to_delete(store.names(), keep) if name not in spared]
    if doomed:
        delete(store, doomed)
    return doomed


def delete(store: CheckpointStore, doomed: Sequence[CheckpointName]) -> None:
    """Remove checkpoints, and objects that no other one names.

    Args:
        store: The run's checkpoints.
        doomed: Some of them.
    """
    names = store.names()
    doomed_objects = _only_of(store, doomed, [name for name in names if name not in doomed])
    # Manifests go first: a kill between the two leaves objects without a manifest, not a manifest that lies.
    for name in doomed:
        store.remove(name)
    # Listed again: a person may have tagged one of them meanwhile, and another process may have committed; their
    # manifests have new names and share these objects.
    doomed_objects = _without(store, doomed_objects, [name for name in store.names() if name not in names])
    store.remove_objects(doomed_objects)


def size_of(store: CheckpointStore, name: CheckpointName) -> int:
    """Bytes that go with a checkpoint: of the objects that no other one names."""
    own = _only_of(store, [name], [other for other in store.names() if other != name])
    sizes = {
        f"{folder}/{file}": info.size_bytes for folder in (OBJECTS, SHARED) for file, info in _files(store, folder)
    }
    return sum(sizes.get(key, 0) for key in own)


FOLDERS_OF_RUN = (MANIFESTS, OBJECTS, SHARED, "events", "samples", "data", "hardware", "speaking", PROBES, "attempts")
"""Folders of a run, in the order in which they are removed: a kill in between leaves no manifest that lies, and the
numbers of the attempts go last."""
FILES_OF_RUN = ("summary.json", "checkpoint_log.json")


def run_files(store: CheckpointStore) -> dict[str, int]:
    """Size of every file that this program has written into a run, by key, in the order of their removal."""
    folders = (*FOLDERS_OF_RUN[:-1], *_below(store, "logs"), FOLDERS_OF_RUN[-1])
    found = {f"{folder}/{file}": info.size_bytes for folder in folders for file, info in _files(store, folder)}
    return found | {file: info.size_bytes for file, info in _files(store, "") if file in FILES_OF_RUN}


def _below(store: CheckpointStore, folder: str) -> Iterator[str]:
    """A folder and all those in it: curves may have names like `amharic/first`."""
    yield folder
    for inner in store.storage.folders(folder):
        yield from _below(store, f"{folder}/{inner}")


def delete_run(store: CheckpointStore, found: Iterable[str]) -> list[str]:
    """Remove the files of a run.

    Args:
        store: The run's checkpoints.
        found: Their keys, as `run_files` gives them.

    Returns:
        Files that are left beside them, which this program did not write.
    """
    for key in found:
        store.storage.delete(key)
    store.storage.remove_empty_folders()
    return sorted(file for file, _ in _files(store, ""))


def _files(store: CheckpointStore, folder: str) -> Iterable[tuple[str, StoredFile]]:
    return store.storage.list(folder).items()


def _only_of(store: CheckpointStore, doomed: Sequence[CheckpointName], others: Sequence[CheckpointName]) -> set[str]:
    """Objects that are named by some checkpoints and by no other."""
    found: set[str] = set()
    for name in doomed:
        # A manifest that cannot be read names none, so its own objects stay.
        with contextlib.suppress(DataError):
            found |= store.objects_of([name])
    return _without(store, found, others)


def _without(store: CheckpointStore, keys: set[str], names: Sequence[CheckpointName]) -> set[str]:
    """Those objects that no checkpoint of these names."""
    try:
        return keys - store.objects_of(names)
    except DataError:
        return set()  # it may name any of them, and somebody may restore it


def collect_orphans(store: CheckpointStore) -> int:
    """Remove the remains of interrupted saves: old temporary files, and old objects that no manifest names.

    Files with names of another form stay, because this program did not write them. Without any manifest all objects
    stay: a person may have moved the manifests away and may put them back.

    Args:
        store: The run's checkpoints.

    Returns:
        Number of objects removed.

    Raises:
        DataError: A manifest is damaged. Then nothing is removed: what looks like an orphan may be its object.
    """
    for folder in ("", MANIFESTS, OBJECTS, SHARED, *FURTHER_FOLDERS):
        store.storage.remove_temporary(folder, SAFE_AGE_S)
    # Of attempts that ended while they found out whether the store refuses to create a key twice.
    for file, info in _files(store, PROBES):
        if info.age_s > SAFE_AGE_S:
            store.storage.delete(f"{PROBES}/{file}")
    # Objects are listed before manifests: an object that a save adds in between is not in the list, and a manifest that
    # a save adds in between protects its objects.
    stored = {
        f"{folder}/{file}": info for folder in (OBJECTS, SHARED) for file, info in store.storage.list(folder).items()
    }
    names = store.names()
    if not names:
        return 0
    old = [key for key, info in stored.items() if info.age_s > SAFE_AGE_S]
    orphans = _unnamed(store, old, names)
    store.remove_objects(orphans)
    return len(orphans)


def _unnamed(store: CheckpointStore, keys: Iterable[str], names: Iterable[CheckpointName]) -> list[str]:
    """Objects of ours that none of these checkpoints names."""
    named = {key for name in names for key in store.manifest(name).objects}
    return [key for key in keys if key not in named and is_object_key(key)]
