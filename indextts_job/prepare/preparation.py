"""What a preparation says of itself on its storage, and where it stands: for `--assemble`, `--plan` and `status`."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from indextts_job.errors import ConfigError, DataError
from indextts_job.parsing import Count, parsed, plain
from indextts_job.prepare.records import OK
from indextts_job.prepare.unit_store import FOLDER, READERS
from indextts_job.redaction import redacted
from indextts_job.storage.run_storage import RunStorage, StoredFile

FILE = "preparation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Written by every worker when it begins."""

    format_version: Count = 1
    utterances: Count
    units: tuple[str, ...]
    """Names of the records of all units."""
    encoders: dict[str, str]
    """SHA-256 of the tensors of each encoder, by its name."""
    files: dict[str, str]
    """The encoders' files, as the configuration names them."""
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a preparation stands."""

    utterances: int
    units: int
    finished: int
    refused: int
    """Utterances that finished units refused."""
    seen: int
    """Utterances of finished units."""
    units_per_hour: float | None
    """Of the units that were finished last; None while there are fewer than two."""
    seconds_left: float | None
    """At that pace."""
    assembled: bool
    older: bool
    """Whether units were finished after the dataset was assembled."""


def write_preparation(storage: RunStorage, preparation: Preparation) -> None:
    """Write the description, unless it is there already."""
    content = json.dumps(plain(preparation), indent=1, sort_keys=True).encode()
    try:
        if storage.read(FILE) == content:
            return
    except FileNotFoundError:
        pass
    storage.write(FILE, content)


def read_preparation(storage: RunStorage) -> Preparation:
    """The description of a preparation.

    Raises:
        ConfigError: No worker has begun it.
        DataError: It is damaged.
    """
    where = f"{redacted(storage.url)}/{FILE}"
    try:
        return parsed(json.loads(storage.read(FILE)), Preparation, FILE)
    except FileNotFoundError:
        raise ConfigError(
            f"{where}: not there, so no worker has begun this preparation. Run `indextts-job prepare`."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: damaged ({error}). Run `indextts-job prepare` again: it is written anew.") from error


def standing(storage: RunStorage) -> Standing:
    """Where a preparation stands."""
    preparation = read_preparation(storage)
    there, dataset = storage.list(FOLDER), storage.list("").get("train.index.safetensors")
    finished, ages = _finished(preparation, there)
    counts = _counts(storage, finished)
    left, unit_s = len(preparation.units) - len(finished), _unit_s(ages)
    return Standing(
        utterances=preparation.utterances,
        units=len(preparation.units),
        finished=len(finished),
        refused=sum(refused for refused, _ in counts),
        seen=sum(seen for _, seen in counts),
        units_per_hour=3600 / unit_s if unit_s else None,
        seconds_left=None if unit_s is None and left else left * (unit_s or 0.0),
        assembled=dataset is not None,
        older=_older(dataset, ages),
    )


def _finished(preparation: Preparation, there: Mapping[str, StoredFile]) -> tuple[list[str], list[float]]:
    """Names of the finished units, and their ages, the youngest first."""
    names = [name for name in preparation.units if f"{name}.json" in there]
    return names, sorted(there[f"{name}.json"].age_s for name in names)


def _older(dataset: StoredFile | None, ages: Sequence[float]) -> bool:
    """Whether a dataset is older than the youngest unit."""
    return dataset is not None and min(ages, default=dataset.age_s) < dataset.age_s


RECENT_UNITS = 64
"""The pace is that of so many units: workers come and go."""


def _unit_s(ages: Sequence[float]) -> float | None:
    """Seconds from one finished unit to the next; None while there are fewer than two.

    Args:
        ages: Seconds since each finished unit was committed, the youngest first.
    """
    recent = ages[:RECENT_UNITS]
    return (recent[-1] - recent[0]) / (len(recent) - 1) if len(recent) > 1 else None


def standing_lines(standing: Standing) -> list[tuple[str, str]]:
    """The same in words: names and texts."""
    share = f" ({standing.refused / standing.seen:.1%})" if standing.seen else ""
    left = "unknown" if standing.seconds_left is None else f"{standing.seconds_left / 60:.0f} min at the present pace"
    rows = [
        ("units", f"{standing.finished} of {standing.units} finished"),
        ("utterances", f"{standing.seen} of {standing.utterances}, {standing.refused} of them refused{share}"),
    ]
    if standing.finished < standing.units:
        rows += [("pace", _pace(standing.units_per_hour)), ("left", left)]
    if standing.older:
        return [*rows, ("dataset", "older than the units: it is assembled again when all of them are finished")]
    return [*rows, ("dataset", "assembled" if standing.assembled else "not assembled yet")]


def _pace(units_per_hour: float | None) -> str:
    return "unknown" if units_per_hour is None else f"{units_per_hour:.1f} units per hour"


def _counts(storage: RunStorage, names: Sequence[str]) -> list[tuple[int, int]]:
    """Refused utterances and all of them, for each record; a damaged record counts as none."""

    def count(name: str) -> tuple[int, int]:
        try:
            utterances = json.loads(storage.read(f"{FOLDER}/{name}.json"))["utterances"]
            return sum(one["status"] != OK for one in utterances), len(utterances)
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return 0, 0

    with ThreadPoolExecutor(READERS, thread_name_prefix="records") as pool:
        return list(pool.map(count, names))
