"""The Jobs of one namespace and their pods: found, watched, deleted."""

import time

from indextts_job.errors import ConfigError, UnavailableError
from launch.kubernetes.api import BrokenError, Document, Namespace, Refusal
from launch.kubernetes.describe import LOST_NODE_ADVICE, node_of
from launch.kubernetes.manifest import APPLICATION

WATCH_S = 60
NODE_LOSS_S = 120
"""Besides the grace period: how long a deletion is waited for."""


class Jobs:
    """What is there of this program in one namespace."""

    def __init__(self, api: Namespace) -> None:
        self._api = api

    def find(self, name: str) -> Document | None:
        """A job; None if there is none of that name."""
        return self._api.look(self._api.batch.read_namespaced_job, name)

    def demand(self, name: str) -> Document:
        """A job that must be there.

        Raises:
            ConfigError: It is not; the message names those that are.
        """
        job = self.find(name)
        if job is None:
            selector = ",".join(f"{key}={value}" for key, value in APPLICATION.items())
            jobs = self._api.call(self._api.batch.list_namespaced_job, "list jobs", label_selector=selector)["items"]
            others = ", ".join(other["metadata"]["name"] for other in jobs) or "none"
            raise ConfigError(f"no job {name} in namespace {self._api.name}; jobs of this program there: {others}.")
        return job

    def pods(self, job: Document) -> list[Document]:
        """Of this very job, oldest first."""
        selector = f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}"
        pods = self._api.call(self._api.core.list_namespaced_pod, "list pods", label_selector=selector)["items"]
        return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))

    def delete(self, job: Document) -> None:
        """Ask for the end of a job and its pods; without a policy the API would leave the pods running."""
        name = job["metadata"]["name"]
        self._api.remove(self._api.batch.delete_namespaced_job, name, propagation_policy="Foreground")

    def wait_until_gone(self, job: Document) -> None:
        """Wait for the end of a job that is being deleted: its trainer commits a checkpoint first.

        Raises:
            UnavailableError: It is still there long after its grace.
        """
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        give_up_at_s = time.monotonic() + grace_s(job) + NODE_LOSS_S
        while (live := self.find(name)) and live["metadata"]["uid"] == uid:
            if time.monotonic() > give_up_at_s:
                pods = ", ".join(f"{pod['metadata']['name']} on {node_of(pod)}" for pod in self.pods(live)) or "none"
                raise UnavailableError(
                    f"job {name} is still being deleted; its pods: {pods}. If a node of them does not answer: "
                    f"{LOST_NODE_ADVICE.format(node='NODE')}"
                )
            self.await_change(live)

    def await_change(self, job: Document) -> None:
        """Return when the job has changed, or after a while."""
        name = job["metadata"]["name"]
        try:
            for _ in self._api.stream(
                self._api.batch.list_namespaced_job,
                field_selector=f"metadata.name={name}",
                resource_version=job["metadata"]["resourceVersion"],
                timeout_seconds=WATCH_S,
                watch=True,
            ):
                return
        except BrokenError:
            self._api.wait(1.0)
        except Refusal as refusal:
            if refusal.status != 410:  # that version is too old to watch from: whatever is new is read next
                raise refusal.as_error(f"watch job {name}") from refusal


def grace_s(job: Document) -> int:
    """Seconds from the signal to the kill."""
    return int(job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30))
