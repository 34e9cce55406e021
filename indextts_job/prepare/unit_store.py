"""Units on storage: which are finished, and the commit of one.

`units/NNNNN-KEY.json` is created, never overwritten, after the objects that it names. Where a store ignores the
condition of a create, the last of two finishers leaves its record; each record is one object and names whole objects,
so the unit exists once in either case.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from indextts_job.errors import DataError
from indextts_job.hashing import Buffer
from indextts_job.prepare.claims import FOLDER as CLAIMS
from indextts_job.prepare.records import UnitRecord, parse_record, to_bytes
from indextts_job.prepare.units import Unit
from indextts_job.redaction import redacted
from indextts_job.storage.run_storage import RunStorage, StoredFile

FOLDER = "units"
LEFT_BEHIND_S = 3600.0
"""A temporary file that is older belongs to a worker that was killed."""
READERS = 32
"""Records read at a time."""
HASH_DIGITS = 32
"""Of the hash in the name of an object: 128 bits."""

logger = logging.getLogger(__name__)


def sha256_of(content: Buffer) -> str:
    """SHA-256 of an object."""
    return hashlib.sha256(content).hexdigest()


def object_name(kind: str, sha256: str) -> str:
    """Name of an object by the hash of its content."""
    return f"{kind}-{sha256[:HASH_DIGITS]}.safetensors"


class UnitStore:
    """The records and objects of a preparation.

    Args:
        storage: Its storage.
    """

    def __init__(self, storage: RunStorage) -> None:
        self.storage = storage

    def unfinished(self, units: Sequence[Unit]) -> list[Unit]:
        """The units without a record."""
        there = self.storage.list(FOLDER)
        return [unit for unit in units if f"{unit.name}.json" not in there]

    def write_object(self, name: str, content: Buffer, there: Mapping[str, StoredFile]) -> None:
        """Write an object, unless it is there already.

        Args:
            name: Its name, which holds the hash of its content.
            content: Its content.
            there: The objects that exist, from `list`.
        """
        size_bytes = memoryview(content).nbytes
        if name not in there or there[name].size_bytes != size_bytes:
            self.storage.write(name, content)

    def objects(self) -> dict[str, StoredFile]:
        """The objects that exist."""
        return self.storage.list("")

    def commit(self, unit: Unit, record: UnitRecord) -> bool:
        """Create the record of a unit; whether it is this worker's record that counts."""
        try:
            self.storage.create(f"{FOLDER}/{unit.name}.json", to_bytes(record))
        except FileExistsError:
            logger.warning("unit %d was finished by another worker meanwhile: its record counts.", unit.number)
            return False
        return True

    def records(self, units: Sequence[Unit]) -> list[UnitRecord] | None:
        """The records of all units, whose objects are all there; None if one is missing or damaged.

        What is damaged is removed, so that the next look finds the unit unfinished.
        """
        found = self.finished(units)
        return [record for _, record in found] if len(found) == len(units) else None

    def finished(self, units: Sequence[Unit]) -> list[tuple[Unit, UnitRecord]]:
        """The finished units with their records; what is damaged is removed, as by `records`."""
        there, listed = self.objects(), self.storage.list(FOLDER)
        named = [unit for unit in units if f"{unit.name}.json" in listed]
        with ThreadPoolExecutor(READERS, thread_name_prefix="records") as pool:
            records = list(pool.map(lambda unit: self._record(unit, there), named))
        return [(unit, record) for unit, record in zip(named, records, strict=True) if record]

    def ids_of(self, name: str) -> list[str]:
        """The ids in the record of a unit; none if there is no record, or a damaged one."""
        try:
            return [str(one["id"]) for one in json.loads(self.storage.read(f"{FOLDER}/{name}.json"))["utterances"]]
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return []

    def make_again(self, name: str) -> None:
        """Remove the record of a unit, so that it is unfinished; its objects stay, a dataset may be using them."""
        with contextlib.suppress(FileNotFoundError):
            self.storage.delete(f"{FOLDER}/{name}.json")

    def tidy(self) -> None:
        """Remove what killed workers left half-written, some time ago: a young file may be in work."""
        for folder in ("", FOLDER, CLAIMS):
            self.storage.remove_temporary(folder, LEFT_BEHIND_S)

    def read_object(self, name: str, size_bytes: int, sha256: str) -> bytes:
        """The content of an object, compared with its hash.

        Raises:
            DataError: It is damaged.
        """
        content = self.storage.read(name)
        if len(content) != size_bytes or sha256_of(content) != sha256:
            raise DataError(
                f"{redacted(self.storage.url)}/{name} is damaged: {len(content)} bytes, expected {size_bytes} with "
                f"SHA-256 {sha256[:16]}…. Delete it and run the same command again: its unit is made anew."
            )
        return content

    def _record(self, unit: Unit, there: Mapping[str, StoredFile]) -> UnitRecord | None:
        key = f"{FOLDER}/{unit.name}.json"
        try:
            record = parse_record(self.storage.read(key), key, [utterance.id for utterance in unit.utterances])
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            self._remove(key, str(error))
            return None
        missing = [name for name, size in record.objects.items() if name not in there or there[name].size_bytes != size]
        if missing:
            self._remove(key, f"{', '.join(missing)} is missing or truncated")
            return None
        return record

    def _remove(self, key: str, why: str) -> None:
        logger.warning("%s/%s: %s. The unit is made again.", redacted(self.storage.url), key, why)
        with contextlib.suppress(FileNotFoundError):
            self.storage.delete(key)
