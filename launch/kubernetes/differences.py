"""Differences between a wanted Job and the one in the cluster. Pure: from objects as the API returns them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .manifest import QUEUE_LABEL

GENERATED_LABELS = tuple(
    f"{prefix}{name}" for prefix in ("", "batch.kubernetes.io/") for name in ("job-name", "controller-uid")
)
"""Labels that the API server sets on the pod template of every Job; the ones without prefix are the older names."""
SERVER_FIELDS = ("selector", "suspend", "manualSelector")
"""Fields of a Job's specification that the server sets, and `suspend`, which queues such as Kueue set."""
SHOWN_CHARACTERS = 120
SUBMITTED = "indextts-job/submitted"
"""Annotation of a Job: the hash of what was submitted. Kueue and other controllers write into a Job later."""


def differences(live: object, wanted: object, where: str = "") -> Iterator[str]:
    """Each field that differs, in a line: `spec.backoffLimit: 10 runs, 20 asked for`.

    Args:
        live: Part of the object in the cluster.
        wanted: The same part of the wanted object, with the server's defaults filled in.
        where: Path of the part, `spec.template` for example; empty for the whole object.
    """
    if isinstance(live, Mapping) and isinstance(wanted, Mapping):
        yield from _in_mappings(live, wanted, where)
    elif isinstance(live, list) and isinstance(wanted, list) and len(live) == len(wanted):
        yield from _in_lists(live, wanted, where)
    elif live != wanted:
        yield f"{where}: {_shown(live)} runs, {_shown(wanted)} asked for"


def _in_mappings(live: Mapping[str, object], wanted: Mapping[str, object], where: str) -> Iterator[str]:
    for key in sorted({*live, *wanted}):
        yield from differences(live.get(key), wanted.get(key), f"{where}.{key}" if where else key)


def _in_lists(live: list[object], wanted: list[object], where: str) -> Iterator[str]:
    for index, (one, other) in enumerate(zip(live, wanted, strict=True)):
        yield from differences(one, other, f"{where}[{_entry_name(one, index)}]")


def _entry_name(entry: object, index: int) -> str:
    """Containers, volumes and variables have names, which say more than a number in a list."""
    return str(entry.get("name", index)) if isinstance(entry, Mapping) else str(index)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:100]}… ({len(text)} characters)"


def submitted(job: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a Job as it was submitted: without the fields that server, controllers and queues set."""
    spec = {key: value for key, value in job["spec"].items() if key not in SERVER_FIELDS}
    template = spec["template"]
    metadata = template.get("metadata", {})
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key not in GENERATED_LABELS}
    annotations = metadata.get("annotations") or {}
    return {**spec, "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": template["spec"]}}


def comparable(job: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a Job that the submitter decides.

    The name of the ConfigMap is left out: it contains a hash of the configuration, whose content is compared instead.
    """
    spec = submitted(job)
    pod = spec["template"]["spec"]
    volumes = [{**volume, "configMap": {}} if "configMap" in volume else volume for volume in pod.get("volumes") or []]
    return {**spec, "template": {**spec["template"], "spec": {**pod, "volumes": volumes}}}


def submitted_hash(job: Mapping[str, Any]) -> str:
    """What tells a Job that was submitted from every other one, before server, policies and queues have changed it."""
    text = json.dumps([job["metadata"].get("labels") or {}, comparable(job)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def as_submitted(document: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the cluster in a form that can be submitted again: without its identity and its status."""
    kept = ("name", "labels", "annotations")
    metadata = {key: value for key, value in document["metadata"].items() if key in kept}
    whole = {key: value for key, value in document.items() if key != "status"}
    if "spec" not in document:
        return {**whole, "metadata": metadata}
    # A queue admits it anew: one that is not suspended from the start would run before.
    queued = {"suspend": True} if QUEUE_LABEL in (metadata.get("labels") or {}) else {}
    return {**whole, "metadata": metadata, "spec": {**submitted(document), **queued}}


def config_map_of(job: Mapping[str, Any]) -> str:
    """Name of the ConfigMap that holds a Job's configuration; empty if it mounts none."""
    volumes = job["spec"]["template"]["spec"].get("volumes") or []
    return next((str(volume["configMap"]["name"]) for volume in volumes if "configMap" in volume), "")
