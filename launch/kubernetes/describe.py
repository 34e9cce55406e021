"""The state of a Job and its pods in words. Pure: from objects as the API returns them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..job import describe, error_line
from .manifest import CONTAINER, QUEUE_LABEL

Object = Mapping[str, Any]
PRESENT = ("active", "ready", "terminating")
"""Counts in a Job's status of pods that exist and have not ended."""
OVERDUE_S = 30.0
"""A pod that is not gone so long after its grace period is on a node that does not answer: usually it takes seconds."""
LOST_NODE_ADVICE = (
    "if the machine is gone for good, `kubectl delete node {node}` or, when it is off, `kubectl taint node {node} "
    "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute`, and the next pod comes. Deleting the pod by force does "
    "not help."
)
RUNTIME_REASONS = ("OOMKilled", "StartError", "ContainerCannotRun")
"""Reasons of the container runtime that say more than the exit code: OOMKilled would read as `killed by SIGKILL`."""


def ended_state(job: Object) -> str:
    """`complete`, `failed, REASON`, or empty while the job goes on."""
    holding = [entry for entry in (job.get("status") or {}).get("conditions") or [] if entry.get("status") == "True"]
    for condition in holding:
        if condition["type"] == "Complete":
            return "complete"
        if condition["type"] == "Failed":
            return f"failed, {condition.get('reason', '')}: {condition.get('message', '')}"
    return ""


def state_text(job: Object) -> str:
    """A job in one line; empty while it waits for a pod."""
    if job["metadata"].get("deletionTimestamp"):
        return "being deleted"
    if ended := ended_state(job):
        return ended
    if waiting := suspension(job):
        return waiting
    return _pod_counts(job.get("status") or {})


def suspension(job: Object) -> str:
    """Why a Job starts no pod; empty if it may."""
    if not job["spec"].get("suspend"):
        return ""
    queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if queue:
        return f"suspended: it waits in the queue {queue}, or made room for others; `kubectl get workloads` tells more"
    return 'suspended: `kubectl patch job NAME -p \'{"spec":{"suspend":false}}\'` lets it go on'


def _pod_counts(status: Object) -> str:
    # Failed pods alone do not count as present: then the job waits for the next pod.
    if not any(status.get(key) for key in PRESENT):
        return ""
    return ", ".join(f"{status[key]} {key}" for key in (*PRESENT, "failed") if status.get(key))


@dataclass(frozen=True, slots=True)
class PodRow:
    """One pod of a job."""

    name: str
    phase: str
    node: str
    started: str
    ended: str
    why: str
    """What the pod is waiting for, or how it ended."""
    last_error: str
    """Last error line of the log of a failed pod."""


def pod_row(pod: Object) -> PodRow:
    """A pod in one row."""
    status = pod.get("status") or {}
    terminated = _container_state(pod).get("terminated") or {}
    return PodRow(
        name=pod["metadata"]["name"],
        # `kubectl get pods` shows a pod that is being deleted in the same way; the API has no such phase.
        phase="Terminating" if pod["metadata"].get("deletionTimestamp") else status.get("phase", ""),
        node=node_of(pod),
        started=status.get("startTime") or "",
        ended=terminated.get("finishedAt") or "",
        why="; ".join(_reasons(pod)),
        # The manifest asks for the end of a failed container's log as its message (FallbackToLogsOnError).
        last_error=error_line(terminated.get("message") or ""),
    )


def _reasons(pod: Object) -> list[str]:
    status = pod.get("status") or {}
    found = [*_condition_reasons(pod), *_container_reasons(_container_state(pod))]
    if not found and status.get("phase") == "Failed":  # its node rejected it before a container was created
        found.append(f"{status.get('reason', '')}: {status.get('message', '')}")
    return found


def _condition_reasons(pod: Object) -> Iterator[str]:
    """Why a pod was evicted, and why no node takes it."""
    conditions = _conditions(pod)
    for kind, status in (("DisruptionTarget", "True"), ("PodScheduled", "False")):
        condition = conditions.get(kind, {})
        if condition.get("status") == status:
            yield f"{condition.get('reason', '')}: {condition.get('message', '')}"


def _container_reasons(state: Object) -> Iterator[str]:
    """How a container ended, or what it waits for."""
    if terminated := state.get("terminated"):
        code, reason = terminated.get("exitCode", 0), terminated.get("reason", "")
        yield f"exit code {code}, {reason if reason in RUNTIME_REASONS else describe(code)}"
    elif waiting := state.get("waiting"):
        yield f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()


def lost_node_lines(pods: Sequence[Object], now: datetime) -> list[str]:
    """A line for each pod whose node does not answer: what this means, and what helps.

    Args:
        pods: The pods of a job.
        now: The time, with a time zone.
    """
    return [
        f"node {node_of(pod)} does not answer. Pod {pod['metadata']['name']} counts as running until it does, and no "
        f"other starts, because two would write one run: {LOST_NODE_ADVICE.format(node=node_of(pod))}"
        for pod in pods
        if not has_ended(pod) and node_of(pod) and _node_is_silent(pod, now)
    ]


def _node_is_silent(pod: Object, now: datetime) -> bool:
    if deletion := pod["metadata"].get("deletionTimestamp"):  # Kubernetes puts the end of the grace period here
        return (now - datetime.fromisoformat(deletion)).total_seconds() > OVERDUE_S
    # Our container has no readiness probe, so a running one is always ready until the cluster loses its node.
    return "running" in _container_state(pod) and _conditions(pod).get("Ready", {}).get("status") == "False"


def _conditions(pod: Object) -> dict[str, Object]:
    """The conditions of a pod by their type."""
    return {entry["type"]: entry for entry in (pod.get("status") or {}).get("conditions") or []}


def _container_state(pod: Object) -> Object:
    # A cluster may add containers of its own to a pod, for example a service mesh.
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        if container.get("name") == CONTAINER:
            return container.get("state") or {}
    return {}


def has_started(pod: Object) -> bool:
    """Whether the trainer's container has a log to read."""
    state = _container_state(pod)
    return "running" in state or "terminated" in state


def has_ended(pod: Object) -> bool:
    """Whether the trainer's container has ended, so that its log is complete."""
    return "terminated" in _container_state(pod)


def index_of(pod: Object) -> int:
    """Index of a pod in an Indexed Job; 0 in other Jobs."""
    return int((pod["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-completion-index", "0"))


def node_of(pod: Object) -> str:
    """The node that a pod runs on; empty until it is scheduled."""
    return str((pod.get("spec") or {}).get("nodeName", ""))
