"""Whether an output is that of this preparation: nothing of another dataset is overwritten or deleted."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from indextts_job.data.containers import header_of
from indextts_job.data.shard_index import INDEX, PREPARED_BY
from indextts_job.errors import ConfigError, DataError
from indextts_job.prepare.preparation import Preparation, read_preparation
from indextts_job.prepare.unit_store import READERS, UnitStore
from indextts_job.prepare.units import Unit
from indextts_job.redaction import redacted
from indextts_job.storage.run_storage import RunStorage

MOST_OTHERS = 0.5
"""Share of the utterances prepared before that the manifests may lack: lines of refused clips are removed, and ids stay
when texts are corrected, but another dataset shares few of them."""


def demand_own(store: UnitStore, units: Sequence[Unit]) -> None:
    """Refuse an output that holds another dataset.

    Args:
        store: The storage of the output.
        units: The units to make.

    Raises:
        ConfigError: There is a dataset of another origin, or one of other utterances.
    """
    recorded = _recorded(store.storage)
    if recorded is None:
        foreign = [name for name in store.objects() if name.endswith(INDEX) and not is_prepared(store.storage, name)]
        if foreign:
            raise ConfigError(
                f"{redacted(store.storage.url)}/{min(foreign)} is a dataset that was not prepared here. Give output "
                "another folder."
            )
        return
    others = _others(store, recorded, units)
    if len(others) > MOST_OTHERS * recorded.utterances:
        raise ConfigError(
            f"{redacted(store.storage.url)} holds a preparation of other utterances: {len(others)} of its "
            f"{recorded.utterances} are not in the manifests, for example {others[0]}. Give output another folder, or "
            "delete that one. Lines may be added, corrected and, up to half of them, removed."
        )


def is_prepared(storage: RunStorage, name: str) -> bool:
    """Whether an index was written by a preparation."""
    try:
        return PREPARED_BY in header_of(storage.read(name))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _recorded(storage: RunStorage) -> Preparation | None:
    try:
        return read_preparation(storage)
    except (ConfigError, DataError):  # none, or a damaged one, which is written anew
        return None


def _ids(units: Sequence[Unit]) -> set[str]:
    return {utterance.id for unit in units for utterance in unit.utterances}


def _others(store: UnitStore, recorded: Preparation, units: Sequence[Unit]) -> list[str]:
    """Ids of finished units of an earlier preparation that are not among these units."""
    names, ids = {unit.name for unit in units}, _ids(units)
    with ThreadPoolExecutor(READERS, thread_name_prefix="records") as pool:
        found = pool.map(store.ids_of, [name for name in recorded.units if name not in names])
        return [name for record in found for name in record if name not in ids]
