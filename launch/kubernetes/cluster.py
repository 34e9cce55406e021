"""A Kubernetes cluster through its API: submit a job, look at it, follow its logs, start it anew, end it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import yaml

from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError, findings_message
from indextts_job.waiting import pause
from launch.kubernetes.api import Document, Namespace
from launch.kubernetes.describe import PodRow, ended_state, lost_node_lines, pod_row, state_text
from launch.kubernetes.differences import as_submitted, comparable, differences
from launch.kubernetes.inputs import CAME_BETWEEN, JobInputs
from launch.kubernetes.jobs import Jobs, grace_s
from launch.kubernetes.logs import print_logs
from launch.kubernetes.replacement import replacement_text

EVENTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job and its pods, as the cluster tells."""

    state: str
    pods: list[PodRow]
    warnings: list[str]
    advice: list[str]
    """What helps where waiting does not."""


class KubernetesCluster:
    """The jobs of one namespace."""

    def __init__(
        self,
        namespace: str = "",
        context: str = "",
        *,
        say: Callable[[str], None],
        wait: Callable[[float], object] = pause,
    ) -> None:
        self._api = Namespace(namespace, context, say, wait)
        self._jobs = Jobs(self._api)
        self._inputs = JobInputs(self._api)
        self._say = say

    def submit(self, manifest: str) -> None:
        """Create what a manifest asks for, unless it is there already.

        Raises:
            ConfigError: The cluster refuses it, or a job of this name runs with something else.
        """
        documents = {document["kind"]: document for document in yaml.safe_load_all(manifest)}
        job, config = documents["Job"], documents["ConfigMap"]
        name = job["metadata"]["name"]
        for _ in range(CAME_BETWEEN):
            wanted = self._try(job)
            live = self._jobs.find(name)
            if live is None:
                self._inputs.create(documents)
                if self._create(job, config):
                    self._say(f"job {name} is submitted to namespace {self._api.name}")
                    return
            elif live["metadata"].get("deletionTimestamp"):
                self._say(f"an earlier job {name} is still ending, its trainer commits a checkpoint; waiting for it")
                self._jobs.wait_until_gone(live)
            elif self._settled(live, wanted, config):
                return
            else:
                self._jobs.delete(live)
                self._jobs.wait_until_gone(live)
        raise UnavailableError(f"job {name}: somebody else creates and deletes it all the time. Try again later.")

    def _try(self, job: Document) -> Document:
        """What the server would make of a job, its defaults and policies included; nothing is created."""
        metadata = {key: value for key, value in job["metadata"].items() if key != "name"}
        name = job["metadata"]["name"]
        trial = {**job, "metadata": {**metadata, "generateName": f"{name}-"}}
        create = self._api.batch.create_namespaced_job
        return self._api.call(create, f"submit job {name}", body=trial, dry_run="All", field_validation="Strict")

    def _create(self, job: Document, config: Document) -> bool:
        """Create a job whose inputs are there; False if somebody else was faster."""
        if not self._api.create(self._api.batch.create_namespaced_job, job):
            return False
        if created := self._jobs.find(job["metadata"]["name"]):
            self._inputs.give(config, created)
        return True

    def _settled(self, live: Document, wanted: Document, config: Document) -> bool:
        """Whether the job that is there is what is asked for; False when it has ended and may be replaced."""
        name = live["metadata"]["name"]
        fields = differences(comparable(live), comparable(wanted))
        changes = [*fields, *self._inputs.config_changes(live, config)]
        ended = ended_state(live)
        if changes and not ended:
            headline = f"job {name} in namespace {self._api.name} runs already, with something else"
            advice = f"End it first: indextts-launch kubernetes cancel {name}. Or submit under another --name."
            raise ConfigError(findings_message(headline, changes, advice))
        if not ended:
            self._say(f"job {name} is there already, the same as this one: nothing to do")
        elif ended == "complete" and not changes:
            self._say(f"job {name} is complete: nothing to do")
        else:
            self._say(f"the earlier job {name} has ended ({ended}); a new one goes on with the run")
            return False
        return True

    def status(self, name: str) -> JobStatus:
        """A job, its pods and what the cluster complains about."""
        job = self._jobs.demand(name)
        pods = self._jobs.pods(job)
        about = {name, *(pod["metadata"]["name"] for pod in pods)}
        warnings = [event for event in self._events("type=Warning") if _about(event) in about]
        now = datetime.now(UTC)
        created = self._events(f"involvedObject.name={name},reason=SuccessfulCreate")
        state = state_text(job) or replacement_text(job, pods, created, now)
        told = list(dict.fromkeys(f"{event.get('reason', '')}: {event.get('message', '')}" for event in warnings))
        advice = lost_node_lines(pods, now)
        return JobStatus(state, [pod_row(pod) for pod in pods], told[-EVENTS_SHOWN:], advice)

    def _events(self, selector: str) -> list[Document]:
        """Oldest first; none where they may not be read. A missing account or a quota shows nowhere else."""
        try:
            events = self._api.call(self._api.core.list_namespaced_event, "list events", field_selector=selector)
        except AccessRefusedError:
            return []
        return sorted(events["items"], key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    def logs(self, name: str, write: Callable[[str], None], *, follow: bool) -> None:
        """What the pods of a job print, oldest first; with `follow` to the job's end, through all replacements."""
        print_logs(self._api, name, write, follow=follow)

    def restart(self, name: str) -> None:
        """A new job in the place of one, with the same of everything: it starts at once, on any node.

        The trainer of the old one commits a checkpoint first, and the new one goes on from there. Kubernetes lets a
        job wait longer after each end of a pod; a new one begins to count anew.

        Raises:
            ConfigError: There is no such job, or its configuration is gone.
        """
        job = self._jobs.demand(name)
        config = self._inputs.config_map(job)
        if config is None:
            raise ConfigError(
                f"job {name}: its ConfigMap is gone. Submit the run again: indextts-launch kubernetes submit"
            )
        self._inputs.release(config["metadata"]["name"])
        self._jobs.delete(job)
        self._say(f"job {name} is being replaced; its trainer has {grace_s(job)} s to commit a checkpoint")
        self._jobs.wait_until_gone(job)
        config = as_submitted(config)
        self._inputs.create({"ConfigMap": config})
        if not self._create(as_submitted(job), config):
            raise UnavailableError(f"job {name}: somebody else has created it meanwhile. Look at it with status.")
        self._say(f"job {name} is started anew in namespace {self._api.name}")

    def cancel(self, name: str) -> None:
        """End a job for good: its trainer commits a checkpoint first; waits until it is gone."""
        job = self._jobs.demand(name)
        self._jobs.delete(job)
        self._say(f"job {name} is being cancelled; its trainer has {grace_s(job)} s to commit a checkpoint")
        self._jobs.wait_until_gone(job)
        # Not earlier: without its account a trainer cannot reach the bucket.
        self._inputs.remove(job)
        self._say(f"job {name} is gone; submitting the same run again goes on from its last checkpoint")


def _about(event: Document) -> str:
    return str((event.get("involvedObject") or {}).get("name", ""))
