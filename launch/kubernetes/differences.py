"""How a Job that is asked for differs from the one that is there. Pure: from objects as the API shows them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

GENERATED_LABELS = tuple(
    f"{prefix}{name}" for prefix in ("", "batch.kubernetes.io/") for name in ("job-name", "controller-uid")
)
"""Set by the API server on the pod template of every Job."""
SERVER_FIELDS = ("selector", "suspend", "manualSelector")
"""Of a Job's specification, set by the server and by queues."""


def differences(live: object, wanted: object, where: str = "") -> Iterator[str]:
    """What would have to change, field by field: `spec.backoffLimit: 10 runs, 20 asked for`.

    Args:
        live: Part of the object that runs.
        wanted: The same part of the object that is asked for, with the server's defaults filled in.
        where: Path of the part.
    """
    if isinstance(live, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*live, *wanted}):
            yield from differences(live.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    elif isinstance(live, list) and isinstance(wanted, list) and len(live) == len(wanted):
        for index, (one, other) in enumerate(zip(live, wanted, strict=True)):
            yield from differences(one, other, f"{where}[{_entry_name(one, index)}]")
    elif live != wanted:
        yield f"{where}: {_shown(live)} runs, {_shown(wanted)} asked for"


def _entry_name(entry: object, index: int) -> str:
    return str(entry.get("name", index)) if isinstance(entry, Mapping) else str(index)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def submitted(job: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a Job as somebody submitted it: without what server, controllers and queues set."""
    spec = {key: value for key, value in job["spec"].items() if key not in SERVER_FIELDS}
    template = spec["template"]
    metadata = template.get("metadata", {})
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key not in GENERATED_LABELS}
    annotations = metadata.get("annotations") or {}
    return {**spec, "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": template["spec"]}}


def comparable(job: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a Job that a submission decides.

    The name of its ConfigMap is left out: it follows from the configuration, which is compared by its content.
    """
    spec = submitted(job)
    pod = spec["template"]["spec"]
    volumes = [{**volume, "configMap": {}} if "configMap" in volume else volume for volume in pod.get("volumes") or []]
    return {**spec, "template": {**spec["template"], "spec": {**pod, "volumes": volumes}}}


def as_submitted(document: Mapping[str, Any]) -> dict[str, Any]:
    """An object that is there, as it could be submitted again: without identity, state and defaults of the server."""
    kept = ("name", "labels", "annotations")
    metadata = {key: value for key, value in document["metadata"].items() if key in kept}
    whole = {key: value for key, value in document.items() if key != "status"}
    return {**whole, "metadata": metadata, **({"spec": submitted(document)} if "spec" in document else {})}


def config_map_of(job: Mapping[str, Any]) -> str:
    """Name of the ConfigMap that holds a Job's configuration; empty if it mounts none."""
    volumes = job["spec"]["template"]["spec"].get("volumes") or []
    return next((str(volume["configMap"]["name"]) for volume in volumes if "configMap" in volume), "")
