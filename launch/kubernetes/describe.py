"""What a Job and its pods tell, as plain JSON, in words for people. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from launch.job import describe
from launch.kubernetes.manifest import CONTAINER

Object = Mapping[str, Any]
PRESENT = ("active", "ready", "terminating")
"""Counts of a Job's status: pods that are there and have not ended."""
OVERDUE_S = 30.0
"""After its grace a pod ends within seconds, if its node is there."""
LOST_NODE_ADVICE = (
    "if the machine is gone for good, `kubectl delete node {node}` or, when it is off, `kubectl taint node {node} "
    "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute`, and the next pod comes. Deleting the pod by force does "
    "not help."
)
RUNTIME_REASONS = ("OOMKilled", "StartError", "ContainerCannotRun")
"""Of the container runtime, where an exit code alone would mislead."""


def ended_state(job: Object) -> str:
    """`complete`, `failed, why`, or empty while the job goes on."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("status") == "True" and condition["type"] == "Complete":
            return "complete"
        if condition.get("status") == "True" and condition["type"] == "Failed":
            return f"failed, {condition.get('reason', '')}: {condition.get('message', '')}"
    return ""


def state_text(job: Object) -> str:
    """A job in one line; empty while it has no pod and waits for one."""
    if job["metadata"].get("deletionTimestamp"):
        return "being deleted"
    if ended := ended_state(job):
        return ended
    if job["spec"].get("suspend"):
        return "suspended"
    status = job.get("status") or {}
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
    """What it is waiting for, or how it ended."""
    last_error: str
    """Of its log, when it has failed."""


def pod_row(pod: Object) -> PodRow:
    """A pod in one row."""
    status = pod.get("status") or {}
    terminated = _container_state(pod).get("terminated") or {}
    lines = (terminated.get("message") or "").splitlines()
    return PodRow(
        name=pod["metadata"]["name"],
        phase="Terminating" if pod["metadata"].get("deletionTimestamp") else status.get("phase", ""),
        node=node_of(pod),
        started=status.get("startTime") or "",
        ended=terminated.get("finishedAt") or "",
        why="; ".join(_reasons(pod)),
        last_error=next((line for line in reversed(lines) if line.startswith("error:")), ""),
    )


def _reasons(pod: Object) -> list[str]:
    conditions = {entry["type"]: entry for entry in (pod.get("status") or {}).get("conditions") or []}
    found = []
    for kind, status in (("DisruptionTarget", "True"), ("PodScheduled", "False")):
        condition = conditions.get(kind, {})
        if condition.get("status") == status:
            found.append(f"{condition.get('reason', '')}: {condition.get('message', '')}")
    state = _container_state(pod)
    if terminated := state.get("terminated"):
        code, reason = terminated.get("exitCode", 0), terminated.get("reason", "")
        found.append(f"exit code {code}, {reason if reason in RUNTIME_REASONS else describe(code)}")
    elif waiting := state.get("waiting"):
        found.append(f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip())
    told = pod.get("status") or {}
    if not found and told.get("phase") == "Failed":  # turned away by its node, before any container was there
        found.append(f"{told.get('reason', '')}: {told.get('message', '')}")
    return found


def lost_node_lines(pods: Sequence[Object], now: datetime) -> list[str]:
    """For each pod whose node does not answer: what it means, and what helps.

    Args:
        pods: Of a job.
        now: With a time zone.
    """
    return [
        f"node {node_of(pod)} does not answer. Pod {pod['metadata']['name']} counts as running until it does, and no "
        f"other starts, because two would write one run: {LOST_NODE_ADVICE.format(node=node_of(pod))}"
        for pod in pods
        if not has_ended(pod) and node_of(pod) and _unheard_of(pod, now)
    ]


def _unheard_of(pod: Object, now: datetime) -> bool:
    if deletion := pod["metadata"].get("deletionTimestamp"):  # the end of its grace
        return (now - datetime.fromisoformat(deletion)).total_seconds() > OVERDUE_S
    conditions = {entry["type"]: entry.get("status") for entry in (pod.get("status") or {}).get("conditions") or []}
    # The container has no readiness probe: only the cluster takes the condition from a running one.
    return "running" in _container_state(pod) and conditions.get("Ready") == "False"


def _container_state(pod: Object) -> Object:
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        if container.get("name") == CONTAINER:
            return container.get("state") or {}
    return {}


def has_started(pod: Object) -> bool:
    """Whether there is a log to read."""
    state = _container_state(pod)
    return "running" in state or "terminated" in state


def has_ended(pod: Object) -> bool:
    """Whether its log is complete."""
    return "terminated" in _container_state(pod)


def index_of(pod: Object) -> int:
    """Of an Indexed Job; 0 in others."""
    return int((pod["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-completion-index", "0"))


def node_of(pod: Object) -> str:
    """The node that a pod was given; empty before that."""
    return str((pod.get("spec") or {}).get("nodeName", ""))
