"""Kubernetes: the manifest of a job.

`render` is pure; `k8s/base` describes the same default job for kustomize. The template explains the fields.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal

from indextts_job.errors import ConfigError
from launch.job import Job
from launch.kubernetes.yaml_text import NOTHING, block, literal, optional, scalar
from launch.run_config import config_argument

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "job.yaml.template"
CONFIG = FOLDER / "run.yaml.template"
CONFIG_KEY = "run.yaml"
"""Key of the run's configuration in the ConfigMap."""
CONFIG_PATH = f"/etc/indextts-job/{CONFIG_KEY}"
"""Path of the run's configuration in the container."""
CONTAINER = "trainer"
APPLICATION = {"app.kubernetes.io/name": "indextts-job"}
"""Label of every object that this program creates: others are never removed."""
MEETING_PORT = 29400
"""Port of the rendezvous of several nodes; torchrun's default."""
SEPARATOR = "\n---\n"
ACCOUNT_KIND = "\nkind: ServiceAccount\n"
# Names of Kubernetes objects: a DNS subdomain (RFC 1123). A Job's name is also a label and a host name: a DNS label.
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONGEST_LABEL = 63
EXAMPLE_IMAGE = "registry.example.com/indextts-job:0.1.0"
Cloud = Literal["eks", "gke", "aks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """Options that only Kubernetes has."""

    config: str = field(default_factory=lambda: CONFIG.read_text(encoding="utf-8"))
    """The run's configuration, as YAML text."""
    backoff_limit: int = 10
    """Crashes over the whole life of the Job: Kubernetes cannot count those in a row (`Job.max_failures`)."""
    keep_days: int = 7
    """How long an ended Job and its logs stay."""
    scratch_gib: int = 50
    """Space requested on the node's disk."""
    service_account: str = ""
    """An existing ServiceAccount; empty = one with the Job's name is created."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the created ServiceAccount: the identity in the cloud."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()
    """Tolerations besides the one for GPU nodes."""
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    endpoint_url: str = ""
    """Endpoint of an S3-compatible store."""
    secret: str = ""
    """An existing Secret whose keys become environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."""


def render(job: Job, options: KubernetesOptions) -> str:
    """The manifest: ConfigMap, ServiceAccount, Job, and a Service for several nodes.

    Raises:
        ConfigError: Kubernetes does not accept a name or a value.
    """
    _check(job, options)
    labels = {**APPLICATION, "app.kubernetes.io/instance": job.name}
    text = Template(MANIFEST.read_text(encoding="utf-8")).substitute(
        name=scalar(job.name),
        config_name=scalar(config_name(job.name, options.config)),
        labels=block({"labels": labels}, 2),
        annotations=optional("annotations", dict(options.identity), 2),
        config=literal(CONFIG_KEY, options.config, 2),
        # When one node is lost for good, the pods of all others fail too, and each of them counts.
        backoff_limit=options.backoff_limit * job.nodes * job.workers,
        ttl=options.keep_days * 86400,
        pod_labels=block({"labels": {**labels, **options.pod_labels}}, 6),
        pod_annotations=optional("annotations", dict(options.pod_annotations), 6),
        grace=job.grace_seconds,
        service_account=scalar(options.service_account or job.name),
        node_selector=optional("nodeSelector", dict(options.node_selector), 6),
        tolerations=optional("tolerations", _tolerations(job, options), 6),
        image=scalar(job.image or EXAMPLE_IMAGE),
        arguments=json.dumps(_arguments(job), ensure_ascii=False),
        environment=_environment(job, options),
        cpus=job.cpus,
        memory=job.memory_gib,
        storage=f"{options.scratch_gib}Gi",
        number_of_gpus=job.gpus,
        gpus=f'              nvidia.com/gpu: "{job.gpus}"' if job.gpus else NOTHING,
        **_several_nodes(job, labels),
    )
    return _without_empty_parts(text, with_account=not options.service_account)


def _check(job: Job, options: KubernetesOptions) -> None:
    _check_name(job)
    for option, value in (("service-account", options.service_account), ("secret", options.secret)):
        if value and not _SUBDOMAIN.fullmatch(value):
            raise ConfigError(f"--{option} {value!r}: expected the name of a Kubernetes object, as kubectl shows it.")
    if not job.image.isprintable() or " " in job.image:
        raise ConfigError(f"--image {job.image!r}: expected a reference such as {EXAMPLE_IMAGE}.")


def _check_name(job: Job) -> None:
    if not _LABEL.fullmatch(job.name) or len(job.name) > LONGEST_LABEL:
        raise ConfigError(
            f"name {job.name!r}: Kubernetes accepts lowercase letters, digits and '-', beginning and ending with a "
            "letter or digit, at most 63 of them."
        )
    # The pods of an Indexed Job have the host names NAME-0, NAME-1, …, which are labels too.
    pods = max(job.nodes, job.workers)
    if pods > 1 and len(f"{job.name}-{pods - 1}") > LONGEST_LABEL:
        raise ConfigError(f"name {job.name!r}: with {pods} pods their number is added; give a shorter one.")


def _without_empty_parts(manifest: str, *, with_account: bool) -> str:
    """A filled template without the documents and lines that are `NOTHING`.

    Args:
        manifest: The documents of the template.
        with_account: Keep the ServiceAccount; an account that exists already is not part of the manifest.
    """
    parts = [part for part in manifest.split(SEPARATOR) if part != NOTHING]
    parts = [part for part in parts if with_account or ACCOUNT_KIND not in part]
    return "".join(line for line in SEPARATOR.join(parts).splitlines(keepends=True) if NOTHING not in line)


def config_name(name: str, config: str) -> str:
    """The name of the ConfigMap: `name` and a hash of the content, equal to that of kustomize's configMapGenerator.

    An immutable ConfigMap with a fixed name would keep the configuration of an earlier Job.

    Args:
        name: Name of the Job.
        config: Text of the run's configuration.
    """
    content = {"data": {CONFIG_KEY: config.rstrip() + "\n"}, "kind": "ConfigMap", "name": ""}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":  # Go's encoder, which kustomize uses, escapes these; Python's does not
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    # Kustomize replaces vowels, and digits that look like vowels, so that a hash spells no word.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]
    return f"{name}-{digest.translate(str.maketrans('013ae', 'ghkmt'))}"


def _tolerations(job: Job, options: KubernetesOptions) -> list[dict[str, str]]:
    # GPU nodes are usually tainted, so that only pods which ask for a GPU run there.
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    return [*([gpu] if job.gpus else []), *map(dict, options.tolerations)]


def _arguments(job: Job) -> list[str]:
    """The arguments of the container."""
    overrides = [_escaped(argument) for argument in job.arguments if argument != config_argument(job)]
    if job.command == "prepare":  # it has nothing to save, so it needs to know no grace
        return ["prepare", CONFIG_PATH, *overrides]
    return ["train", CONFIG_PATH, "--grace-seconds", "$(GRACE_SECONDS)", *overrides]


def _escaped(text: str) -> str:
    """A text that the kubelet leaves as it is: it replaces `$(NAME)` by a variable and `$$` by `$`."""
    return text.replace("$", "$$")


def _several_nodes(job: Job, labels: Mapping[str, str]) -> dict[str, str]:
    """The parts of the template that only a job with several pods at a time has."""
    nothing = dict.fromkeys(("service", "indexed", "subdomain"), NOTHING)
    if job.command == "prepare":
        # One worker too: with an index its next pod has the same name and goes on with its unit at once.
        return {**nothing, "indexed": _indexed(job.workers)}
    if job.nodes == 1:
        return nothing
    return {
        "service": block(_service(job, labels), 0),
        "indexed": _indexed(job.nodes),
        "subdomain": optional("subdomain", job.name, 6),
    }


def _indexed(pods: int) -> str:
    return block({"completionMode": "Indexed", "completions": pods, "parallelism": pods}, 2)


def _service(job: Job, labels: Mapping[str, str]) -> dict[str, Any]:
    """A headless Service: it gives the pods of several nodes host names that outlive a replaced pod."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": dict(labels)},
        "spec": {
            "clusterIP": "None",
            # The nodes find each other while they start, before any of them could count as ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job.name},
            "ports": [{"name": "meeting", "port": MEETING_PORT}],
        },
    }


def _environment(job: Job, options: KubernetesOptions) -> str:
    lines = []
    if job.nodes > 1:
        meeting = f"{job.name}-0.{job.name}:{MEETING_PORT}"
        pairs = {"INDEXTTS_NODES": str(job.nodes), "INDEXTTS_MEETING": meeting}
        lines.append(block([{"name": name, "value": value} for name, value in pairs.items()], 12))
    if options.endpoint_url:
        lines.append(block([{"name": "AWS_ENDPOINT_URL", "value": _escaped(options.endpoint_url)}], 12))
    if options.secret:
        lines.append(block({"envFrom": [{"secretRef": {"name": options.secret}}]}, 10))
    return "\n".join(lines) or NOTHING
