"""What a run no longer needs: checkpoints that retention does not keep, and the remains of interrupted saves."""

import contextlib
from collections.abc import Iterable, Sequence

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, OBJECTS, SHARED, is_object_key
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import DataError

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
    names, spared = store.names(), set(untouchable)
    doomed = [name for name in retention.to_delete(names, keep) if name not in spared]
    if not doomed:
        return []
    doomed_objects = _only_of(store, doomed, [name for name in names if name not in doomed])
    # Manifests go first: a kill between the two leaves objects without a manifest, not a manifest that lies.
    for name in doomed:
        store.remove(name)
    # Listed again: a person may have tagged one of them meanwhile, and another process may have committed; their
    # manifests have new names and share these objects.
    doomed_objects = _without(store, doomed_objects, [name for name in store.names() if name not in names])
    store.remove_objects(doomed_objects)
    return doomed


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
