"""Kubernetes: the manifest of a job.

`render` is pure; `k8s/base` gives kustomize the same for the default job. Fields and their reasons stand in the
template.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any, Literal

from indextts_job.errors import ConfigError, findings_message
from launch.job import Job
from launch.kubernetes.yaml_text import NOTHING, block, literal, optional, scalar
from launch.run_config import config_argument, read_config

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "job.yaml.template"
CONFIG = FOLDER / "run.yaml.template"
CONFIG_KEY = "run.yaml"
"""Of the ConfigMap: the run's configuration."""
CONFIG_PATH = f"/etc/indextts-job/{CONFIG_KEY}"
"""Of the run's configuration, in the container."""
CONTAINER = "trainer"
APPLICATION = {"app.kubernetes.io/name": "indextts-job"}
MEETING_PORT = 29400
SEPARATOR = "\n---\n"
ACCOUNT_KIND = "\nkind: ServiceAccount\n"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
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
    for option, value in (("service-account", options.service_account), ("secret", options.secret)):
        if value and not _NAME.fullmatch(value):
            raise ConfigError(f"--{option} {value!r}: expected the name of a Kubernetes object, as kubectl shows it.")
    if not job.image.isprintable() or " " in job.image:
        raise ConfigError(
            f"--image {job.image!r}: expected a reference such as registry.example.com/indextts-job:0.1.0."
        )
    labels = {**APPLICATION, "app.kubernetes.io/instance": job.name}
    gpu_toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    tolerations = [*([gpu_toleration] if job.gpus else []), *options.tolerations]
    text = Template(MANIFEST.read_text(encoding="utf-8")).substitute(
        name=scalar(job.name),
        config_name=scalar(config_name(job.name, options.config)),
        labels=block({"labels": labels}, 2),
        annotations=optional("annotations", dict(options.identity), 2),
        config=literal(CONFIG_KEY, options.config, 2),
        service=block(_service(job, labels), 0) if job.nodes > 1 else NOTHING,
        indexed=block(_indexed(job), 2) if job.nodes > 1 else NOTHING,
        subdomain=optional("subdomain", job.name if job.nodes > 1 else "", 6),
        # When one node is lost for good, the pods of all others fail too, and each of them counts.
        backoff_limit=options.backoff_limit * job.nodes,
        ttl=options.keep_days * 86400,
        pod_labels=block({"labels": {**labels, **options.pod_labels}}, 6),
        pod_annotations=optional("annotations", dict(options.pod_annotations), 6),
        grace=job.grace_seconds,
        service_account=scalar(options.service_account or job.name),
        node_selector=optional("nodeSelector", dict(options.node_selector), 6),
        tolerations=optional("tolerations", [dict(toleration) for toleration in tolerations], 6),
        image=scalar(job.image or "registry.example.com/indextts-job:0.1.0"),
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


def config_name(name: str, config: str) -> str:
    """The name of the ConfigMap: another one for another configuration, as kustomize's configMapGenerator does it.

    A ConfigMap of a fixed name would go on holding the configuration of an earlier Job: it cannot be changed.

    Args:
        name: Of the Job.
        config: Text of the run's configuration.
    """
    content = {"data": {CONFIG_KEY: config.rstrip() + "\n"}, "kind": "ConfigMap", "name": ""}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":  # what Go's encoder writes otherwise than Python's
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    # Kustomize leaves vowels and digits that look like them out of its hashes, so that they spell no words.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]
    return f"{name}-{digest.translate(str.maketrans('013ae', 'ghkmt'))}"


def _plain(text: str) -> str:
    """A text that the kubelet leaves as it is: `$(NAME)` would be a variable, and `$$` becomes `$`."""
    return text.replace("$", "$$")


def _arguments(job: Job) -> list[str]:
    """Of the container."""
    overrides = [_plain(argument) for argument in job.arguments if argument != config_argument(job)]
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
        lines.append(block([{"name": name, "value": value} for name, value in pairs.items()], 12))
    if options.endpoint_url:
        lines.append(block([{"name": "AWS_ENDPOINT_URL", "value": _plain(options.endpoint_url)}], 12))
    if options.secret:
        lines.append(block({"envFrom": [{"secretRef": {"name": options.secret}}]}, 10))
    return "\n".join(lines) or NOTHING


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
