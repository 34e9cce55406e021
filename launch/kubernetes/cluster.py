"""The jobs of a Kubernetes cluster: submit, status, logs, restart, cancel."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import yaml

from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError, findings_message
from indextts_job.waiting import pause

from .api import Document, Namespace
from .describe import PodRow, ended_state, lost_node_lines, pod_row, state_text, suspension
from .differences import SUBMITTED, as_submitted, comparable, differences, submitted_hash
from .inputs import CAME_BETWEEN, JobInputs
from .jobs import Jobs, grace_s
from .logs import print_logs
from .replacement import replacement_text

EVENTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job and its pods."""

    state: str
    pods: list[PodRow]
    warnings: list[str]
    """Last warnings among the cluster's events about the job and its pods."""
    advice: list[str]
    """What the user has to do where waiting does not help."""


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
        """Create the objects of a manifest, unless the same job exists already.

        Args:
            manifest: YAML text with a Job, its ConfigMap and what else `manifest.render` gives.

        Raises:
            ConfigError: The cluster refuses the job, or a different job of the same name is running.
        """
        documents = {document["kind"]: document for document in yaml.safe_load_all(manifest)}
        job, config = documents["Job"], documents["ConfigMap"]
        name = job["metadata"]["name"]
        job["metadata"].setdefault("annotations", {})[SUBMITTED] = submitted_hash(job)
        # Between reading and creating, another client may create or delete the job: then look at it again.
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
        raise UnavailableError(f"job {name}: another client creates and deletes it all the time. Try again later.")

    def _try(self, job: Document) -> Document:
        """The job with the server's defaults and policies applied; nothing is created."""
        metadata = {key: value for key, value in job["metadata"].items() if key != "name"}
        name = job["metadata"]["name"]
        # A generated name, because a trial under the name of an existing job would be refused.
        trial = {**job, "metadata": {**metadata, "generateName": f"{name}-"}}
        create = self._api.batch.create_namespaced_job
        return self._api.call(create, f"submit job {name}", body=trial, dry_run="All", field_validation="Strict")

    def _create(self, job: Document, config: Document) -> bool:
        """Create a job whose inputs exist; False if another client has created one of that name meanwhile."""
        if not self._api.create(self._api.batch.create_namespaced_job, job):
            return False
        if created := self._jobs.find(job["metadata"]["name"]):
            self._inputs.give(config, created)
        return True

    def _settled(self, live: Document, wanted: Document, config: Document) -> bool:
        """Whether the existing job is the wanted one; False when it has ended and may be replaced.

        Raises:
            ConfigError: It differs and is still running.
        """
        name = live["metadata"]["name"]
        changes = [*_changes(live, wanted), *self._inputs.config_changes(live, config)]
        ended = ended_state(live)
        if changes and not ended:
            headline = f"job {name} in namespace {self._api.name} is running already, with other settings"
            advice = f"End it first: indextts-launch kubernetes cancel {name}. Or submit under another --name."
            raise ConfigError(findings_message(headline, changes, advice))
        if not ended:
            waits = f"; it is {waiting}" if (waiting := suspension(live)) else ""
            self._say(f"job {name} exists already and is the same as this one: nothing to do{waits}")
        elif ended == "complete" and not changes:
            self._say(f"job {name} is complete: nothing to do")
        else:
            self._say(f"the earlier job {name} has ended ({ended}); a new one goes on with the run")
            return False
        return True

    def status(self, name: str) -> JobStatus:
        """The state of a job and its pods, and the cluster's warnings about them."""
        job = self._jobs.demand(name)
        pods = self._jobs.pods(job)
        now = datetime.now(UTC)
        created = self._events(f"involvedObject.name={name},reason=SuccessfulCreate")
        state = state_text(job) or replacement_text(job, pods, created, now)
        warnings = self._warnings({name, *(pod["metadata"]["name"] for pod in pods)})
        return JobStatus(state, [pod_row(pod) for pod in pods], warnings, lost_node_lines(pods, now))

    def _warnings(self, names: set[str]) -> list[str]:
        """The last warnings about the objects of these names, each text once."""
        about = [event for event in self._events("type=Warning") if _about(event) in names]
        texts = dict.fromkeys(f"{event.get('reason', '')}: {event.get('message', '')}" for event in about)
        return list(texts)[-EVENTS_SHOWN:]

    def _events(self, selector: str) -> list[Document]:
        """The events that a selector finds, oldest first; none if the user may not read them."""
        # Only events tell of a missing account or an exceeded quota. Without the right to read them status is less
        # helpful, but no error.
        try:
            events = self._api.call(self._api.core.list_namespaced_event, "list events", field_selector=selector)
        except AccessRefusedError:
            return []
        return sorted(events["items"], key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    def logs(self, name: str, write: Callable[[str], None], *, follow: bool) -> str:
        """Print the logs of a job's pods; with `follow` until the job ends, including the pods that come later.

        Returns:
            How the job has ended; empty when it goes on.
        """
        return print_logs(self._api, name, write, follow=follow)

    def wait(self, name: str) -> str:
        """Return when a job has ended: `complete`, or `failed, …`.

        Raises:
            ConfigError: There is no such job, or it was deleted meanwhile.
        """
        job = self._jobs.demand(name)
        while not (ended := ended_state(job)):
            self._jobs.await_change(job)
            job = self._jobs.demand(name)
        return ended

    def only_job(self) -> str:
        """Name of the only job of this program in the namespace.

        Raises:
            ConfigError: There are several, or none; names them.
        """
        names = self._jobs.names()
        if len(names) == 1:
            return names[0]
        found = f"there are {', '.join(names)}" if names else "there is none"
        raise ConfigError(f"which job? In namespace {self._api.name} {found}. Give its name.")

    def restart(self, name: str) -> None:
        """Replace a job by a new one with the same specification, which starts at once and on any node.

        The trainer of the old job commits a checkpoint first, and the new job goes on from it. Kubernetes waits longer
        after each end of a pod; for a new job that count starts again.

        Raises:
            ConfigError: There is no such job, or its configuration is gone.
        """
        job = self._jobs.demand(name)
        config = self._inputs.config_map(job)
        if config is None:
            raise ConfigError(
                f"job {name}: its ConfigMap is gone. Submit the run again: indextts-launch kubernetes submit"
            )
        # Otherwise the cluster would remove the configuration together with the old job.
        self._inputs.release(config["metadata"]["name"])
        self._jobs.delete(job)
        self._say(f"job {name} is being replaced; its trainer has {grace_s(job)} s to commit a checkpoint")
        self._jobs.wait_until_gone(job)
        config = as_submitted(config)
        self._inputs.create({"ConfigMap": config})
        if not self._create(as_submitted(job), config):
            raise UnavailableError(
                f"job {name}: another client has created a job of this name meanwhile. Look at it with status."
            )
        self._say(f"job {name} is started anew in namespace {self._api.name}")

    def cancel(self, name: str) -> None:
        """Delete a job and wait until it is gone; its trainer commits a checkpoint first.

        Of a job that has ended and was removed by the cluster since, what it leaves behind is removed.
        """
        job = self._jobs.find(name)
        if job is None and self._inputs.remove_left(name):
            self._say(f"job {name} has ended and was removed by the cluster; what was left of it is gone now")
            return
        job = self._jobs.demand(name)
        self._jobs.delete(job)
        self._say(f"job {name} is being cancelled; its trainer has {grace_s(job)} s to commit a checkpoint")
        self._jobs.wait_until_gone(job)
        # Only now: without its account the trainer could not write its last checkpoint to the bucket.
        self._inputs.remove(job)
        self._say(f"job {name} is gone; submitting the same run again goes on from its last checkpoint")


def _changes(live: Document, wanted: Document) -> list[str]:
    """What of a job differs from the wanted one."""
    before, now = (((job["metadata"].get("annotations") or {}).get(SUBMITTED)) for job in (live, wanted))
    # By what was submitted, not by what is there: a queue adds node selectors, a policy adds labels. A job that kubectl
    # has applied has no such annotation.
    if before and before == now:
        return []
    fields = list(differences(comparable(live), comparable(wanted)))
    return fields or ([f"labels: {live['metadata'].get('labels')} run"] if before else [])


def _about(event: Document) -> str:
    """The name of the object that an event is about."""
    return str((event.get("involvedObject") or {}).get("name", ""))
