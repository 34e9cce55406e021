"""A Kubernetes cluster through its API: submit a job, look at it, follow its logs, end it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml

from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError, findings_message
from launch.kubernetes.api import BrokenError, Document, Namespace, Refusal
from launch.kubernetes.describe import (
    PodRow,
    ended_state,
    has_ended,
    has_started,
    index_of,
    node_of,
    pod_row,
    state_text,
)
from launch.kubernetes.manifest import APPLICATION, CONTAINER, comparable, differences

WATCH_S = 60
NODE_LOSS_S = 120
"""Besides the grace period: how long a deletion is waited for."""
CAME_BETWEEN = 5
"""Times that somebody else may create or delete the job between two calls."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job and its pods, as the cluster tells."""

    state: str
    pods: list[PodRow]
    warnings: list[str]


class KubernetesCluster:
    """The jobs of one namespace."""

    def __init__(
        self,
        namespace: str = "",
        context: str = "",
        *,
        say: Callable[[str], None],
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = Namespace(namespace, context, say, wait)
        self._say = say

    def submit(self, manifest: str) -> None:
        """Create what a manifest asks for, unless it is there already.

        Raises:
            ConfigError: The cluster refuses it, or a job of this name runs with something else.
        """
        documents = {document["kind"]: document for document in yaml.safe_load_all(manifest)}
        job = documents["Job"]
        name = job["metadata"]["name"]
        for _ in range(CAME_BETWEEN):
            wanted = self._try(job)
            live = self._find(name)
            if live is None:
                self._create_inputs(documents)
                if self._api.create(self._api.batch.create_namespaced_job, job):
                    self._say(f"job {name} is submitted to namespace {self._api.name}")
                    return
            elif live["metadata"].get("deletionTimestamp"):
                self._say(f"an earlier job {name} is still ending, its trainer commits a checkpoint; waiting for it")
                self._wait_until_gone(live)
            elif self._settled(live, wanted, documents["ConfigMap"]):
                return
            else:
                self._delete(live)
                self._wait_until_gone(live)
        raise UnavailableError(f"job {name}: somebody else creates and deletes it all the time. Try again later.")

    def _try(self, job: Document) -> Document:
        """What the server would make of a job, its defaults and policies included; nothing is created."""
        metadata = {key: value for key, value in job["metadata"].items() if key != "name"}
        name = job["metadata"]["name"]
        trial = {**job, "metadata": {**metadata, "generateName": f"{name}-"}}
        create = self._api.batch.create_namespaced_job
        return self._api.call(create, f"submit job {name}", body=trial, dry_run="All", field_validation="Strict")

    def _settled(self, live: Document, wanted: Document, config: Document) -> bool:
        """Whether the job that is there is what is asked for; False when it has ended and may be replaced."""
        name = live["metadata"]["name"]
        changes = [*differences(comparable(live), comparable(wanted)), *self._config_changes(config)]
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

    def _config_changes(self, wanted: Document) -> list[str]:
        live = self._api.look(self._api.core.read_namespaced_config_map, wanted["metadata"]["name"])
        if live is None:
            return ["its ConfigMap: nothing is there, a replaced pod could not start"]
        theirs, ours = (yaml.safe_load((one.get("data") or {}).get("run.yaml", "")) for one in (live, wanted))
        return [f"run.yaml: {change}" for change in differences(theirs, ours)]

    def _create_inputs(self, documents: Mapping[str, Document]) -> None:
        core, config = self._api.core, documents["ConfigMap"]
        name = config["metadata"]["name"]
        if not self._api.create(core.create_namespaced_config_map, config) and self._config_changes(config):
            # Left by an earlier job, and immutable.
            self._api.remove(core.delete_namespaced_config_map, name)
            self._api.create(core.create_namespaced_config_map, config)
        if "Service" in documents:
            self._api.create(core.create_namespaced_service, documents["Service"])
        account = documents.get("ServiceAccount")
        if account and not self._api.create(core.create_namespaced_service_account, account):
            annotations = account["metadata"].get("annotations")
            if annotations:
                patch = {"metadata": {"annotations": annotations}}
                update = core.patch_namespaced_service_account
                self._api.call(update, f"update ServiceAccount {name}", name=name, body=patch)

    def status(self, name: str) -> JobStatus:
        """A job, its pods and what the cluster complains about."""
        job = self._demand(name)
        pods = self._pods(job)
        about = {name, *(pod["metadata"]["name"] for pod in pods)}
        return JobStatus(state_text(job), [pod_row(pod) for pod in pods], self._warnings(about))

    def _warnings(self, about: set[str]) -> list[str]:
        """The last ones: a missing account or a quota shows nowhere else."""
        try:
            events = self._api.call(self._api.core.list_namespaced_event, "list events", field_selector="type=Warning")
        except AccessRefusedError:
            return []
        found = [event for event in events["items"] if (event.get("involvedObject") or {}).get("name") in about]
        found.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return list(dict.fromkeys(f"{event.get('reason', '')}: {event.get('message', '')}" for event in found))[-5:]

    def logs(self, name: str, write: Callable[[str], None], *, follow: bool) -> None:
        """What the pods of a job print, oldest first; with `follow` to the job's end, through all replacements."""
        job: Document | None = self._demand(name)
        uid = job["metadata"]["uid"] if job else ""
        printed: dict[str, str] = {}
        done: set[str] = set()
        while job and job["metadata"]["uid"] == uid:
            for pod in self._pods(job):
                pod_name = pod["metadata"]["name"]
                # Of several nodes the first speaks; to follow another would be to wait in silence.
                silent = follow and index_of(pod) > 0
                if silent or pod_name in done or not has_started(pod):
                    continue
                if not self._print(pod_name, printed, write, follow=follow):
                    self._api.wait(1.0)  # it broke off; asked for again from there
                    break
                if has_ended(pod):  # before its log was read, so that was all of it
                    done.add(pod_name)
            else:
                if not follow:
                    return
                if ended := ended_state(job):
                    write(f"── job {name}: {ended}")
                    return
                self._await_change(job)
            job = self._find(name)

    def _print(self, pod: str, printed: dict[str, str], write: Callable[[str], None], *, follow: bool) -> bool:
        """Print what is new of a pod's log; False if there may be more.

        Args:
            pod: Its name.
            printed: Time of the last line printed, by pod.
            write: Takes a line.
            follow: Go on until the container ends.
        """
        if pod not in printed:
            write(f"── {pod}")
        seen = printed.setdefault(pod, "")
        read = self._api.core.read_namespaced_pod_log
        try:
            for line in self._api.stream(read, name=pod, container=CONTAINER, follow=follow, timestamps=True):
                at, _, text = line.partition(" ")
                if at > seen:
                    write(text)
                    printed[pod] = at
        except BrokenError:
            return False
        except Refusal as refusal:
            if refusal.status not in (400, 404):  # not started, gone
                raise refusal.as_error(f"read the log of {pod}") from refusal
        return True

    def cancel(self, name: str) -> None:
        """End a job for good: its trainer commits a checkpoint first; waits until it is gone."""
        job = self._demand(name)
        self._delete(job)
        self._say(f"job {name} is being cancelled; its trainer has {_grace_s(job)} s to commit a checkpoint")
        self._wait_until_gone(job)
        core = self._api.core
        # Not earlier: without its account and configuration a trainer cannot reach the bucket.
        for look, remove in (
            (core.read_namespaced_config_map, core.delete_namespaced_config_map),
            (core.read_namespaced_service_account, core.delete_namespaced_service_account),
            (core.read_namespaced_service, core.delete_namespaced_service),
        ):
            left = self._api.look(look, name)
            if left and APPLICATION.items() <= (left["metadata"].get("labels") or {}).items():
                self._api.remove(remove, name)
        self._say(f"job {name} is gone; submitting the same run again goes on from its last checkpoint")

    def _delete(self, job: Document) -> None:
        # Without a policy the API leaves the pods running.
        name = job["metadata"]["name"]
        self._api.remove(self._api.batch.delete_namespaced_job, name, propagation_policy="Foreground")

    def _wait_until_gone(self, job: Document) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        give_up_at_s = time.monotonic() + _grace_s(job) + NODE_LOSS_S
        while (live := self._find(name)) and live["metadata"]["uid"] == uid:
            if time.monotonic() > give_up_at_s:
                pods = ", ".join(f"{pod['metadata']['name']} on {node_of(pod)}" for pod in self._pods(live)) or "none"
                raise UnavailableError(
                    f"job {name} is still being deleted; its pods: {pods}. One on a lost node ends when the node comes "
                    "back or its Node object is deleted. If you are sure that the node is gone: "
                    "kubectl delete pod NAME --force"
                )
            self._await_change(live)

    def _find(self, name: str) -> Document | None:
        return self._api.look(self._api.batch.read_namespaced_job, name)

    def _demand(self, name: str) -> Document:
        job = self._find(name)
        if job is None:
            selector = ",".join(f"{key}={value}" for key, value in APPLICATION.items())
            jobs = self._api.call(self._api.batch.list_namespaced_job, "list jobs", label_selector=selector)["items"]
            others = ", ".join(other["metadata"]["name"] for other in jobs) or "none"
            raise ConfigError(f"no job {name} in namespace {self._api.name}; jobs of this program there: {others}.")
        return job

    def _pods(self, job: Document) -> list[Document]:
        """Of this very job, oldest first."""
        selector = f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}"
        pods = self._api.call(self._api.core.list_namespaced_pod, "list pods", label_selector=selector)["items"]
        return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))

    def _await_change(self, job: Document) -> None:
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


def _grace_s(job: Document) -> int:
    return int(job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30))
