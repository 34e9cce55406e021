"""Spot nodes of the clouds: what a job needs to run on them. Pure.

`k8s/overlays/` describes the same for kustomize.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..job import Job
from .manifest import Cloud, KubernetesOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotNodes:
    """How a cloud marks its spot nodes, and how much time it leaves a pod there."""

    label: str
    """Label of the nodes, and key of their taint."""
    value: str
    tainted: bool
    """Whether the cloud keeps pods without a toleration away from the nodes."""
    grace_seconds: int
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    pod_labels: Mapping[str, str] = field(default_factory=dict)

    def tolerations(self) -> list[dict[str, str]]:
        """The tolerations that a pod needs to run there."""
        if not self.tainted:
            return []
        return [{"key": self.label, "value": self.value, "operator": "Equal", "effect": "NoSchedule"}]


SPOT_NODES: dict[Cloud, SpotNodes] = {
    "eks": SpotNodes(
        label="karpenter.sh/capacity-type",
        value="spot",
        tainted=False,
        # AWS reclaims a machine 120 s after its notice, and Karpenter reacts to the notice with a delay.
        grace_seconds=100,
        # Without this Karpenter moves the pod to a cheaper node whenever it finds one.
        pod_annotations={"karpenter.sh/do-not-disrupt": "true"},
    ),
    "gke": SpotNodes(
        label="cloud.google.com/gke-spot",
        value="true",
        tainted=True,
        # Google gives 30 s, of which GKE leaves pods the first 15 s unless the node pool is configured otherwise.
        grace_seconds=15,
    ),
    "aks": SpotNodes(
        label="kubernetes.azure.com/scalesetpriority",
        value="spot",
        tainted=True,
        grace_seconds=25,  # Azure gives 30 s
        # Azure's webhook gives its credentials only to pods with this label.
        pod_labels={"azure.workload.identity/use": "true"},
    ),
}


def spot(cloud: Cloud, job: Job, options: KubernetesOptions) -> tuple[Job, KubernetesOptions]:
    """The same job on a cloud's spot nodes, with the grace that is left there; given options have precedence."""
    nodes = SPOT_NODES[cloud]
    options = replace(
        options,
        node_selector={nodes.label: nodes.value, **options.node_selector},
        tolerations=[*nodes.tolerations(), *options.tolerations],
        pod_annotations={**nodes.pod_annotations, **options.pod_annotations},
        pod_labels={**nodes.pod_labels, **options.pod_labels},
    )
    return replace(job, grace_seconds=nodes.grace_seconds), options
