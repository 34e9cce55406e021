"""The Jobs of one namespace and their pods: find, watch and delete them."""

import time

from indextts_job.errors import ConfigError, UnavailableError

from .api import BrokenError, Document, Namespace, Refusal
from .describe import LOST_NODE_ADVICE, node_of
from .manifest import APPLICATION

WATCH_S = 60
"""A watch ends after this, and the job is read again: a change that the watch has missed is seen then."""
NODE_LOSS_S = 120
"""How much longer than its grace period a deletion may take. A lost node never confirms it."""


class Jobs:
    """The Jobs of this program in one namespace."""

    def __init__(self, api: Namespace) -> None:
        self._api = api

    def find(self, name: str) -> Document | None:
        """The job of that name; None if there is none."""
        return self._api.look(self._api.batch.read_namespaced_job, name)

    def demand(self, name: str) -> Document:
        """The job of that name.

        Raises:
            ConfigError: There is none; the message names those that exist.
        """
        job = self.find(name)
        if job is None:
            others = ", ".join(self.names()) or "none"
            raise ConfigError(f"no job {name} in namespace {self._api.name}; jobs of this program there: {others}.")
        return job

    def names(self) -> list[str]:
        """Names of all jobs of this program."""
        selector = ",".join(f"{key}={value}" for key, value in APPLICATION.items())
        jobs = self._api.call(self._api.batch.list_namespaced_job, "list jobs", label_selector=selector)["items"]
        return sorted(job["metadata"]["name"] for job in jobs)

    def pods(self, job: Document) -> list[Document]:
        """The pods of a job, oldest first."""
        # By uid and not by name: the pods of a deleted job of the same name may still be ending.
        selector = f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}"
        pods = self._api.call(self._api.core.list_namespaced_pod, "list pods", label_selector=selector)["items"]
        return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))

    def delete(self, job: Document) -> None:
        """Start the deletion of a job and its pods."""
        name = job["metadata"]["name"]
        # Without a policy the API leaves the pods running. Foreground keeps the job visible until its pods are gone.
        self._api.remove(self._api.batch.delete_namespaced_job, name, propagation_policy="Foreground")

    def wait_until_gone(self, job: Document) -> None:
        """Wait until a job that is being deleted is gone: its trainer commits a checkpoint first.

        Raises:
            UnavailableError: The job still exists long after its grace period.
        """
        give_up_at_s = time.monotonic() + grace_s(job) + NODE_LOSS_S
        while live := self._same(job):
            if time.monotonic() > give_up_at_s:
                raise UnavailableError(self._still_there(live))
            self.await_change(live)

    def _same(self, job: Document) -> Document | None:
        """The job as it is now; None if it is gone, even if there is a new one with its name."""
        live = self.find(job["metadata"]["name"])
        return live if live and live["metadata"]["uid"] == job["metadata"]["uid"] else None

    def _still_there(self, job: Document) -> str:
        pods = ", ".join(f"{pod['metadata']['name']} on {node_of(pod)}" for pod in self.pods(job)) or "none"
        return (
            f"job {job['metadata']['name']} is still being deleted; its pods: {pods}. If a node of them does not "
            f"answer: {LOST_NODE_ADVICE.format(node='NODE')}"
        )

    def await_change(self, job: Document) -> None:
        """Return when the job has changed, or after `WATCH_S`."""
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
            if refusal.status != 410:  # gone: that version is too old to watch from, so the caller reads the job again
                raise refusal.as_error(f"watch job {name}") from refusal


def grace_s(job: Document) -> int:
    """Seconds from the signal to the kill; Kubernetes' default is 30."""
    return int(job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30))
