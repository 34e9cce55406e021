"""Kubernetes: the manifest of a job, and how a manifest differs from what runs.

`render` is pure; the committed `k8s/job.yaml` is what it gives for the default job. Fields and their reasons stand in
the template.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any, Literal

import yaml

from indextts_job.errors import ConfigError, findings_message
from launch.job import Job
from launch.run_config import config_argument, read_config

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "job.yaml.template"
CONFIG = FOLDER / "run.yaml.template"
CONFIG_PATH = "/etc/indextts-job/run.yaml"
"""Of the run's configuration, in the container."""
CONTAINER = "trainer"
APPLICATION = {"app.kubernetes.io/name": "indextts-job"}
MEETING_PORT = 29400
GENERATED_LABELS = tuple(
    f"{prefix}{name}" for prefix in ("", "batch.kubernetes.io/") for name in ("job-name", "controller-uid")
)
"""Set by the API server on the pod template of every Job."""
SEPARATOR = "\n---\n"
ACCOUNT_KIND = "\nkind: ServiceAccount\n"
NOTHING = "\0"
"""In place of an optional part: its line is dropped."""
Cloud = Literal["eks", "gke", "aks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """What only Kubernetes needs to know."""

    config: str = field(default_factory=lambda: CONFIG.read_text(encoding="utf-8"))
    """The run's configuration, as YAML text."""
    backoff_limit: int = 10
    """Crashes over the whole life of the Job: Kubernetes cannot count those in a row (`Job.max_failures`)."""
    keep_days: int = 7
    """How long an ended Job and its logs stay."""
    scratch_gib: int = 50
    """Asked for on the node's disk."""
    service_account: str = ""
    """An existing one; empty = one with the Job's name is made."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the ServiceAccount that is made: the cloud's identity."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()
    """Besides the one for GPU nodes."""
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    endpoint_url: str = ""
    """Of an S3-compatible store."""
    secret: str = ""
    """An existing Secret whose keys become environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."""


def spot(cloud: Cloud, job: Job, options: KubernetesOptions) -> tuple[Job, KubernetesOptions]:
    """The same job on a cloud's spot nodes; `k8s/overlays/` says the same to kustomize.

    Grace: AWS reclaims 120 s after its notice, of which Karpenter needs some to hear of it. GKE leaves pods the first
    15 s of 30 (more only where the node pool is configured so). Azure gives 30 s.
    """
    selector, toleration, grace = {
        "eks": ("karpenter.sh/capacity-type", {}, 100),
        "gke": ("cloud.google.com/gke-spot", {"key": "cloud.google.com/gke-spot", "value": "true"}, 15),
        "aks": (
            "kubernetes.azure.com/scalesetpriority",
            {"key": "kubernetes.azure.com/scalesetpriority", "value": "spot"},
            25,
        ),
    }[cloud]
    tolerations = [{**toleration, "operator": "Equal", "effect": "NoSchedule"}] if toleration else []
    options = replace(
        options,
        node_selector={selector: "true" if cloud == "gke" else "spot", **options.node_selector},
        tolerations=[*tolerations, *options.tolerations],
    )
    if cloud == "eks":  # or Karpenter moves the pod to a cheaper node whenever it finds one
        options = replace(options, pod_annotations={"karpenter.sh/do-not-disrupt": "true", **options.pod_annotations})
    if cloud == "aks":
        options = replace(options, pod_labels={"azure.workload.identity/use": "true", **options.pod_labels})
    return replace(job, grace_seconds=grace), options


def render(job: Job, options: KubernetesOptions) -> str:
    """The manifest: ConfigMap, ServiceAccount, Job.

    Raises:
        ConfigError: Something that Kubernetes does not accept as a name or value.
    """
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job.name) or len(job.name) > 63:
        raise ConfigError(
            f"name {job.name!r}: Kubernetes accepts lowercase letters, digits and '-', beginning and ending with a "
            "letter or digit, at most 63 of them."
        )
    if job.nodes > 1 and len(f"{job.name}-{job.nodes - 1}") > 63:
        raise ConfigError(f"name {job.name!r}: with {job.nodes} nodes their number is added; give a shorter one.")
    labels = {**APPLICATION, "app.kubernetes.io/instance": job.name}
    gpu_toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    tolerations = [*([gpu_toleration] if job.gpus else []), *options.tolerations]
    text = Template(MANIFEST.read_text(encoding="utf-8")).substitute(
        name=job.name,
        labels=_block({"labels": labels}, 2),
        annotations=_optional("annotations", dict(options.identity), 2),
        config=_indented(options.config, 4),
        service=_block(_service(job, labels), 0) if job.nodes > 1 else NOTHING,
        indexed=_block(_indexed(job), 2) if job.nodes > 1 else NOTHING,
        subdomain=_optional("subdomain", job.name if job.nodes > 1 else "", 6),
        # When one node is lost for good, the pods of all others fail too, and each of them counts.
        backoff_limit=options.backoff_limit * job.nodes,
        ttl=options.keep_days * 86400,
        pod_labels=_block({"labels": {**labels, **options.pod_labels}}, 6),
        pod_annotations=_optional("annotations", dict(options.pod_annotations), 6),
        grace=job.grace_seconds,
        service_account=options.service_account or job.name,
        node_selector=_optional("nodeSelector", dict(options.node_selector), 6),
        tolerations=_optional("tolerations", [dict(toleration) for toleration in tolerations], 6),
        image=job.image or "registry.example.com/indextts-job:0.1.0",
        arguments=json.dumps(_arguments(job), ensure_ascii=False),
        environment=_environment(job, options),
        cpus=job.cpus,
        memory=job.memory_gib,
        storage=f"{options.scratch_gib}Gi",
        gpus=f'              nvidia.com/gpu: "{job.gpus}"' if job.gpus else NOTHING,
    )
    parts = [part for part in text.split(SEPARATOR) if part != NOTHING]
    parts = [part for part in parts if not (options.service_account and ACCOUNT_KIND in part)]
    return "".join(line for line in SEPARATOR.join(parts).splitlines(keepends=True) if NOTHING not in line)


def _arguments(job: Job) -> list[str]:
    """Of the container. A `$(` of the user's is no reference to a variable."""
    overrides = [argument.replace("$(", "$$(") for argument in job.arguments if argument != config_argument(job)]
    return ["train", CONFIG_PATH, "--grace-seconds", "$(GRACE_SECONDS)", *overrides]


def _service(job: Job, labels: Mapping[str, str]) -> dict[str, Any]:
    """Gives the pods of several nodes names that last."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": dict(labels)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job.name},
            "ports": [{"name": "meeting", "port": MEETING_PORT}],
        },
    }


def _indexed(job: Job) -> dict[str, Any]:
    return {"completionMode": "Indexed", "completions": job.nodes, "parallelism": job.nodes}


def _environment(job: Job, options: KubernetesOptions) -> str:
    lines = []
    if job.nodes > 1:
        meeting = f"{job.name}-0.{job.name}:{MEETING_PORT}"
        pairs = {"INDEXTTS_NODES": str(job.nodes), "INDEXTTS_MEETING": meeting}
        lines.append(_block([{"name": name, "value": value} for name, value in pairs.items()], 12))
    if options.endpoint_url:
        lines.append(_block([{"name": "AWS_ENDPOINT_URL", "value": options.endpoint_url}], 12))
    if options.secret:
        lines.append(_block({"envFrom": [{"secretRef": {"name": options.secret}}]}, 10))
    return "\n".join(lines) or NOTHING


def _optional(key: str, value: Mapping[str, Any] | Sequence[Any] | str, indent: int) -> str:
    """Nothing at all when empty: the API server drops an empty field, and `kubectl apply` would add it each time."""
    return _block({key: value}, indent) if value else NOTHING


class _Dumper(yaml.SafeDumper):
    """Lists are indented, as in the rest of the manifest."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, False)  # noqa: FBT003  # PyYAML's signature


def _block(value: Mapping[str, Any] | Sequence[Any], indent: int) -> str:
    return _indented(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000), indent)


def _indented(text: str, indent: int) -> str:
    return "\n".join(" " * indent + line if line.strip() else "" for line in text.rstrip().split("\n"))


def remote_config(job: Job) -> tuple[str, str]:
    """The text of the job's configuration, and the URL of its run; checked before anything is queued.

    Raises:
        ConfigError: No file, a wrong one, or one that names the pod's own disk.
    """
    path = config_argument(job)
    if not path:
        raise ConfigError("no configuration given. Add one: indextts-launch kubernetes submit --image I -- run.yaml")
    if "://" in path:
        raise ConfigError(f"{path}: a Job keeps its own copy of the configuration; give a local file.")
    text, config = read_config(job)
    paths = {
        "run": [config.run],
        "inputs.model_config": [config.inputs.model_config],
        "inputs.base_checkpoint": [config.inputs.base_checkpoint],
        "inputs.tokenizer": [config.inputs.tokenizer],
        "data.train_manifests": config.data.train_manifests,
        "data.validation_manifests": config.data.validation_manifests,
    }
    local = [
        f"{key}: {value or 'not given'}" for key, values in paths.items() for value in values if "://" not in value
    ]
    if local:
        headline = f"{path} names paths on the disk of a pod, which starts empty and is lost with it"
        raise ConfigError(findings_message(headline, local, "Give URLs: s3://…, gs://…, abfs://…"))
    return text, config.run


def name_of_run(run: str) -> str:
    """A Job's name from the run's URL: submitting the same run again meets the same Job."""
    last = run.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:52].rstrip("-") or "indextts"


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


def comparable(job: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a Job that a submission decides: without what server, controllers and queues set."""
    spec = {key: value for key, value in job["spec"].items() if key not in ("selector", "suspend", "manualSelector")}
    template = spec["template"]
    metadata = template.get("metadata", {})
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key not in GENERATED_LABELS}
    annotations = metadata.get("annotations") or {}
    return {**spec, "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": template["spec"]}}
