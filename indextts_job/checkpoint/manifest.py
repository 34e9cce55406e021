"""A checkpoint's manifest: one small JSON document that names every byte. Without it there is no checkpoint (I4).

Names say step, attempt, the step at which the attempt resumed, and tags, so a listing alone tells which checkpoint
is newest and what retention may remove.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.values import CheckpointValues, parse_values
from indextts_job.errors import DataError

MANIFESTS = "checkpoints"
"""Folder of the manifests in a run."""
FORMAT = "indextts-job checkpoint"
# Readers refuse every other version; a change of the layout needs a new number.
FORMAT_VERSION = 2

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}
"""Bytes of one element, by safetensors' name of the type."""
OBJECTS, SHARED = "objects", "shared"
"""Folders of the objects of a run: of what training changes, and of what all its checkpoints share. The latter stays
small, so one listing after every commit finds a loss in it however many checkpoints are kept."""
_KEY = re.compile(rf"(?:{OBJECTS}|{SHARED})/([0-9a-f]{{32}})(?:\.[A-Za-z0-9]{{1,16}})?")
"""The only names that a manifest may give to its objects. Retention deletes them, so `../` or an absolute path would
delete files of the user."""
# The names come from a file; they may hold no folder and no `..`.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TAG = re.compile(r"[a-z]{1,32}")
# At least so many digits: zero-padded numbers sort as text, larger ones still parse.
_NAME = re.compile(r"step-(\d{8,})-attempt-(\d{4,})-from-(\d{8,})((?:-[a-z]+)*)\.json")


def file_name(name: CheckpointName) -> str:
    """File name of a manifest; names sort by step, then attempt."""
    # Sorted, so that one set of tags has one name; two names would be two checkpoints.
    tags = "".join(f"-{tag}" for tag in sorted(name.tags))
    return f"step-{name.step:08d}-attempt-{name.attempt:04d}-from-{name.attempt_start:08d}{tags}.json"


def is_object_key(key: str) -> bool:
    """Whether a key is one that this program gives to an object."""
    return _KEY.fullmatch(key) is not None


def parse_file_name(file: str) -> CheckpointName | None:
    """The inverse of `file_name`; None for other files."""
    match = _NAME.fullmatch(file)
    if match is None:
        return None
    step, attempt, start, tags = match.groups()
    return CheckpointName(int(step), int(attempt), int(start), tuple(tags.split("-")[1:]))


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file in `objects/` or `shared/`, named by the hash of its bytes."""

    key: str
    xxh3: str
    """xxh3-128 of its bytes."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The place of a tensor in an object."""

    dtype: str
    """As safetensors spells it: F32, F16, BF16."""
    shape: tuple[int, ...]
    object: str
    """Key of the object."""
    start: int
    """First byte within the object."""
    stop: int
    """Byte behind the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """A checkpoint: where its tensors lie, and everything else that it stores, as plain values."""

    name: CheckpointName
    created: str
    """UTC, ISO 8601."""
    objects: Mapping[str, StoredObject]
    tensors: Mapping[str, StoredTensor]
    """By name: `model/…`, `exp_avg/…`, `exp_avg_sq/…`, and `base/…` for what never changes."""
    files: Mapping[str, str]
    """Other files, by name: key of their object."""
    values: CheckpointValues

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects it names."""
        return sum(stored.size_bytes for stored in self.objects.values())

    def to_json(self) -> bytes:
        """The document as it is stored."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "step": self.name.step,
            "attempt": self.name.attempt,
            "attempt_start": self.name.attempt_start,
            "tags": list(self.name.tags),
            "created": self.created,
            "objects": {key: {"xxh3": o.xxh3, "bytes": o.size_bytes} for key, o in self.objects.items()},
            "tensors": {key: asdict(tensor) for key, tensor in self.tensors.items()},
            "files": dict(self.files),
            "values": self.values.to_json(),
        }
        # The hash tells a truncated or altered manifest from a whole one; nothing else protects the manifest itself.
        document["sha256"] = _hash(document)
        # Indented, because people open manifests. No NaN: other JSON parsers refuse it.
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _hash(document: Mapping[str, Any]) -> str:
    """Hash of a document without its own hash, over a canonical form: sorted keys, no white space."""
    plain = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(content: bytes, source: str) -> CheckpointManifest:
    """A manifest from its bytes.

    Raises:
        DataError: Not a manifest, or of a newer format.
    """
    document = _document(content, source)
    if not _is_whole(document):
        raise DataError(f"{source}: the manifest does not have the hash that it names; it is damaged.")
    try:
        objects = _objects(document["objects"])
        return CheckpointManifest(
            name=_name(document),
            created=_text(document["created"]),
            objects=objects,
            tensors={_text(key): _tensor(entry, objects) for key, entry in document["tensors"].items()},
            files={_file(key): _known(value, objects) for key, value in document["files"].items()},
            values=parse_values(document["values"], source),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # The hash was right, so another program wrote this. Any of these errors means a field of the wrong kind.
        raise DataError(f"{source}: the manifest lacks or garbles {error}; it is damaged.") from error


def _document(content: bytes, source: str) -> dict[str, Any]:
    """The JSON object of a manifest, of this format and version."""
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not a checkpoint manifest ({error}); it is damaged or not ours.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{source}: not a checkpoint manifest of indextts-job.")
    # The version comes before the hash: a later format may compute its hash in another way.
    if document.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{source}: checkpoint format {document.get('format_version')!r}, this version reads {FORMAT_VERSION}. "
            "Install the indextts-job release that wrote it, or a newer one."
        )
    return document


def _is_whole(document: Mapping[str, Any]) -> bool:
    try:
        return bool(document.get("sha256") == _hash(document))
    except (ValueError, RecursionError):  # a NaN, or a lone surrogate, which we never write
        return False


def _name(document: Mapping[str, Any]) -> CheckpointName:
    tags = document["tags"]
    if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        raise ValueError("tags")
    step, attempt, start = (_count(document[key]) for key in ("step", "attempt", "attempt_start"))
    return CheckpointName(step, attempt, start, tuple(tags))


def _objects(entries: Mapping[str, Any]) -> dict[str, StoredObject]:
    found = {}
    for key, entry in entries.items():
        digest = entry["xxh3"]
        # The name is the hash. A key that names another hash would pass verification and be shared by mistake.
        if not isinstance(digest, str) or not (match := _KEY.fullmatch(key)) or match[1] != digest:
            raise ValueError(f"the object {key!r}")
        found[key] = StoredObject(key, digest, _count(entry["bytes"]))
    return found


def _tensor(entry: Mapping[str, Any], objects: Mapping[str, StoredObject]) -> StoredTensor:
    shape = tuple(_count(length) for length in entry["shape"])
    start, stop = _count(entry["start"]), _count(entry["stop"])
    stored = objects[_known(entry["object"], objects)]
    # The range must fit the shape and the object: `stored_view` makes a view of exactly these bytes.
    item_bytes = ITEM_BYTES.get(entry["dtype"])
    unfit = item_bytes is None or stop - start != math.prod(shape) * item_bytes or stop > stored.size_bytes
    # A view begins at a multiple of the size of its type.
    if unfit or (item_bytes and start % item_bytes):
        raise ValueError(f"a tensor in {stored.key}: {entry}")
    return StoredTensor(entry["dtype"], shape, stored.key, start, stop)


def _known(key: object, objects: Mapping[str, StoredObject]) -> str:
    if not isinstance(key, str) or key not in objects:
        raise ValueError(f"the object {key!r}, which it does not list")
    return key


def _file(name: str) -> str:
    if not _FILE.fullmatch(name):
        raise ValueError(f"the file name {name!r}")
    return name


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(repr(value))
    return value


def _count(value: object) -> int:
    # `True` is an int in Python, but no count in JSON. Larger numbers do not fit 64 bits.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r}, which is no count")
    return value
