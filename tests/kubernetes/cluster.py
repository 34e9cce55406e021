"""A namespace of a cluster, with as much of the Job controller as a launcher can notice.

It behaves as a real 1.36 API server was seen to: defaults, both kinds of 409, 422 with causes, 410, watches, deletion
that waits for pods, logs that end with the container. Pods do what a test tells them to.
"""

import copy
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import kubernetes_validate

Document = dict[str, Any]
VERSION = "1.37"


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": code,
        }


@dataclass
class Log:
    """What a container printed, with the time of each line."""

    lines: list[str] = field(default_factory=list)
    ended: bool = False
    cut_after: int = -1
    """Break the connection after so many lines, once."""


class Cluster:
    """One namespace."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Document] = {}
        self.logs: dict[str, Log] = {}
        self.changed = threading.Condition(threading.RLock())
        self._version = 100
        self._history: list[tuple[int, str, str, Document]] = []
        """(version, type of event, resource, object)."""
        self._oldest = 0
        self._serial = 0

    # ---- what happens in the cluster

    def job(self, name: str) -> Document:
        """The job as it is stored."""
        return self.objects["jobs", name]

    def start_pod(self, job_name: str, index: int | None = None) -> str:
        """The Job controller creates a pod, of an Indexed Job if there is an index, and its container starts."""
        with self.changed:
            job = self.job(job_name)
            template = job["spec"]["template"]
            self._serial += 1
            name = f"{job_name}-{self._serial:05d}"
            own = {} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "labels": {**template["metadata"]["labels"], **own},
                    "creationTimestamp": f"2026-11-21T12:{self._serial // 60:02d}:{self._serial % 60:02d}Z",
                },
                "spec": {**template["spec"], "nodeName": f"node-{self._serial}"},
                "status": {
                    "phase": "Running",
                    "startTime": "2026-11-21T12:00:00Z",
                    "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
                },
            }
            self.logs[name] = Log()
            self._store("pods", pod, "ADDED")
            self._tell(job_name, "Normal", "SuccessfulCreate", f"Created pod: {name}")
            self._update_job(job_name, active=1, ready=1)
            return name

    def wait_for_container(self, pod_name: str, reason: str, message: str) -> None:
        """Its container cannot start."""
        with self.changed:
            pod = self.objects["pods", pod_name]
            waiting = {"reason": reason, "message": message}
            pod["status"] |= {
                "phase": "Pending",
                "containerStatuses": [{"name": "trainer", "state": {"waiting": waiting}}],
            }
            self._store("pods", pod, "MODIFIED")

    def print_line(self, pod_name: str, text: str) -> None:
        """The container prints a line."""
        with self.changed:
            log = self.logs[pod_name]
            log.lines.append(f"2026-11-21T12:00:00.{len(log.lines):09d}Z {text}")
            self.changed.notify_all()

    def end_pod(self, pod_name: str, code: int, *, disruption: str = "", message: str = "") -> str:
        """The container ends; the Job controller acts on its failure policy.

        Returns:
            The action: Complete, FailJob, Ignore or Count.
        """
        with self.changed:
            pod = self.objects["pods", pod_name]
            job_name = pod["metadata"]["labels"]["job-name"]
            conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disruption, "message": "so"}]
            state = {"exitCode": code, "finishedAt": "2026-11-21T12:30:00Z", "message": message, "reason": "Error"}
            pod["status"] |= {
                "phase": "Succeeded" if code == 0 else "Failed",
                "conditions": conditions if disruption else [],
                "containerStatuses": [{"name": "trainer", "state": {"terminated": state}}],
            }
            self.logs[pod_name].ended = True
            self._store("pods", pod, "MODIFIED")
            if disruption:
                self._remove("pods", pod_name)  # an evicted pod is deleted, its log with it
            action = self._act(job_name, pod)
            if self.job(job_name)["metadata"].get("deletionTimestamp"):
                self._finish_deletion(job_name)
            return action

    def _act(self, job_name: str, pod: Document) -> str:
        job = self.job(job_name)
        action = "Complete" if pod["status"]["phase"] == "Succeeded" else action_for(job, pod)
        if action == "Complete":
            self._update_job(job_name, conditions=[{"type": "Complete", "status": "True"}])
        elif action == "FailJob":
            why = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "Container trainer …"}
            self._update_job(job_name, conditions=[why])
        elif action == "Count":
            failed = job["status"].get("failed", 0) + 1
            conditions = []
            if failed > job["spec"]["backoffLimit"]:
                why = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}
                conditions = [why]
            self._update_job(job_name, failed=failed, conditions=conditions)
        else:
            self._update_job(job_name)
        return action

    def warn(self, about: str, reason: str, message: str) -> None:
        """The cluster complains."""
        with self.changed:
            self._tell(about, "Warning", reason, message)

    def lose_node(self, pod_name: str) -> None:
        """The node of a pod does not answer any more; its Node object is still there."""
        with self.changed:
            pod = self.objects["pods", pod_name]
            pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
            self._store("pods", pod, "MODIFIED")
            self._tell(pod_name, "Warning", "NodeNotReady", "Node is not ready")

    def _tell(self, about: str, kind: str, reason: str, message: str) -> None:
        self._serial += 1
        event = {
            "metadata": {"name": f"event-{self._serial}"},
            "involvedObject": {"name": about},
            "type": kind,
            "reason": reason,
            "message": message,
            "lastTimestamp": f"2026-11-21T12:{self._serial // 60:02d}:{self._serial % 60:02d}Z",
        }
        self._store("events", event, "ADDED")

    def forget_history(self) -> None:
        """Watches from versions before now get 410."""
        with self.changed:
            self._version += 1
            self._oldest = self._version
            self._history.clear()

    # ---- requests

    def create(self, resource: str, document: Document, query: dict[str, str]) -> Document:
        """POST."""
        if query.get("fieldValidation") == "Strict":
            _demand_known_fields(document)
        document = copy.deepcopy(document)
        metadata = document["metadata"]
        if "generateName" in metadata:
            metadata["name"] = metadata["generateName"][:58] + uuid.uuid4().hex[:5]
        name = metadata["name"]
        existing = self.objects.get((resource, name))
        if existing:
            ending = "object is being deleted: " if existing["metadata"].get("deletionTimestamp") else ""
            message = f'{ending}{resource} "{name}" already exists'
            raise ApiError(409, "AlreadyExists", message, name=name, kind=resource)
        metadata["uid"] = str(uuid.uuid4())
        if resource == "jobs":
            _default_and_check(document)
        if query.get("dryRun") != "All":
            with self.changed:
                self._store(resource, document, "ADDED")
        return document

    def delete(self, resource: str, name: str, query: dict[str, str]) -> Document:
        """DELETE."""
        document = self.find(resource, name)
        policy = query.get("propagationPolicy", "")
        with self.changed:
            if resource == "jobs" and policy == "Foreground":
                document["metadata"]["deletionTimestamp"] = "2026-11-21T13:00:00Z"
                self._store(resource, document, "MODIFIED")
                self._finish_deletion(name)
            else:  # a Job's pods run on, orphaned
                self._remove(resource, name)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def patch(self, resource: str, name: str, change: Document) -> Document:
        """PATCH: a JSON merge patch (RFC 7396)."""
        with self.changed:
            document: Document = _merged(self.find(resource, name), change)
            self._store(resource, document, "MODIFIED")
            return document

    def find(self, resource: str, name: str) -> Document:
        """GET of one."""
        try:
            return self.objects[resource, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found', name=name, kind=resource) from None

    def list(self, resource: str, query: dict[str, str]) -> list[Document]:
        """GET of many."""
        with self.changed:
            return [entry for (kind, _), entry in self.objects.items() if kind == resource and _selected(entry, query)]

    def watch(self, resource: str, query: dict[str, str]) -> Iterator[Document]:
        """Events after a version, until the time is over."""
        seen = int(query["resourceVersion"])
        if seen < self._oldest:
            raise ApiError(410, "Expired", f"too old resource version: {seen} ({self._oldest})")
        return self._watch(resource, query, seen)

    def _watch(self, resource: str, query: dict[str, str], seen: int) -> Iterator[Document]:
        while True:
            with self.changed:
                news = [entry for entry in self._history if entry[0] > seen and entry[2] == resource]
                if not news and not self.changed.wait(float(query["timeoutSeconds"])):
                    return
            for version, kind, _, document in news:
                seen = version
                if _selected(document, query):
                    yield {"type": kind, "object": document}

    def read_log(self, pod_name: str, *, follow: bool) -> Iterator[str]:
        """Lines; with `follow` until the container has ended."""
        self.find("pods", pod_name)
        log = self.logs[pod_name]
        state = self.objects["pods", pod_name]["status"]["containerStatuses"][0]["state"]
        if "waiting" in state:
            raise ApiError(400, "BadRequest", f'container "trainer" in pod "{pod_name}" is waiting to start')
        return self._read_log(log, follow=follow)

    def _read_log(self, log: Log, *, follow: bool) -> Iterator[str]:
        given = 0
        while True:
            with self.changed:
                if given == len(log.lines):
                    if log.ended or not follow:
                        return
                    self.changed.wait()
                    continue
                line = log.lines[given]
                if given == log.cut_after:
                    log.cut_after = -1
                    raise ConnectionResetError
            given += 1
            yield line

    # ---- the store

    def _store(self, resource: str, document: Document, kind: str) -> None:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        self.objects[resource, document["metadata"]["name"]] = document
        self._history.append((self._version, kind, resource, copy.deepcopy(document)))
        self.changed.notify_all()

    def _remove(self, resource: str, name: str) -> None:
        document = self.objects.pop((resource, name))
        self._version += 1
        self._history.append((self._version, "DELETED", resource, document))
        self.changed.notify_all()
        if resource == "jobs":
            self._collect(document["metadata"]["uid"])

    def _collect(self, owner: str) -> None:
        """The garbage collector: what belonged to an object that is gone goes too."""
        for (resource, name), document in list(self.objects.items()):
            owners = document["metadata"].get("ownerReferences") or []
            if owners and all(entry["uid"] == owner for entry in owners):
                self._remove(resource, name)

    def _finish_deletion(self, job_name: str) -> None:
        """A job that is deleted in the foreground goes when its last pod has ended."""
        pods = self.list("pods", {"labelSelector": f"job-name={job_name}"})
        if all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in pods):
            for pod in pods:
                self._remove("pods", pod["metadata"]["name"])
            self._remove("jobs", job_name)

    def _update_job(self, name: str, **status: Any) -> None:
        job = self.job(name)
        failed = job["status"].get("failed")
        job["status"] = {**({"failed": failed} if failed else {}), **status}
        self._store("jobs", job, "MODIFIED")


def action_for(job: Document, pod: Document) -> str:
    """What the Job controller does about a failed pod: the first rule that matches, else it counts."""
    conditions = {entry["type"]: entry["status"] for entry in pod["status"].get("conditions") or []}
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        wanted = rule.get("onPodConditions")
        if wanted and any(conditions.get(entry["type"]) == entry.get("status", "True") for entry in wanted):
            return str(rule["action"])
        codes = rule.get("onExitCodes")
        if codes and code and (code in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
    return "Count"


def environment_of(job: Document, node: str, index: int | None = None) -> dict[str, str]:
    """What the container of a pod of this job finds in its environment, as controller and kubelet make it.

    Args:
        job: As it was created.
        node: Name of the node that the pod runs on.
        index: Of the pod, when the job is an Indexed Job.
    """
    name = job["metadata"]["name"]
    fields = {
        "metadata.name": f"{name}-x7k2p" if index is None else f"{name}-{index}-x7k2p",
        "spec.nodeName": node,
        "metadata.labels['batch.kubernetes.io/job-name']": name,
        "metadata.labels['batch.kubernetes.io/controller-uid']": job["metadata"]["uid"],
    }
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found = {} if index is None else {"JOB_COMPLETION_INDEX": str(index)}
    for entry in container["env"]:
        source = entry.get("valueFrom")
        found[entry["name"]] = fields[source["fieldRef"]["fieldPath"]] if source else entry["value"]
    return found


def _demand_known_fields(document: Document) -> None:
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        raise ApiError(400, "BadRequest", f"strict decoding error: {path}: {error.message}") from error


def _default_and_check(job: Document) -> None:
    _demand_valid(job)
    spec, metadata = job["spec"], job["metadata"]
    filled_in = {"parallelism": 1, "completions": 1, "completionMode": "NonIndexed", "suspend": False}
    spec |= {**filled_in, **spec}
    generated = {"job-name": metadata["name"], "controller-uid": metadata["uid"]}
    generated |= {f"batch.kubernetes.io/{key}": value for key, value in generated.items()}
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": metadata["uid"]}}
    for rule in spec["podFailurePolicy"]["rules"]:
        for condition in rule.get("onPodConditions", ()):
            condition.setdefault("status", "True")
    template = spec["template"]
    template["metadata"]["labels"] = {**template["metadata"].get("labels", {}), **generated}
    pod = template["spec"]
    for holder, key in ((template["metadata"], "annotations"), (pod, "nodeSelector"), (pod, "tolerations")):
        if not holder.get(key):
            holder.pop(key, None)
    _default_pod(pod)
    job["status"] = {}


def _default_pod(pod: Document) -> None:
    pod |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
    pod["serviceAccount"] = pod["serviceAccountName"]
    for container in pod["containers"]:
        container |= {"imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log"}
        for entry in container["env"]:
            if "valueFrom" in entry:
                entry["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")
        resources = container["resources"]
        resources["limits"] = {key: str(value) for key, value in resources["limits"].items()}
        resources["requests"] = {**resources["limits"], **resources["requests"]}
    for volume in pod["volumes"]:
        if "configMap" in volume:
            volume["configMap"].setdefault("defaultMode", 420)


def _demand_valid(job: Document) -> None:
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    causes = []
    for index, container in enumerate(pod["containers"]):
        for key, amount in container["resources"]["requests"].items():
            if str(amount).startswith("-"):
                path = f"spec.template.spec.containers[{index}].resources.requests[{key}]"
                message = f'Invalid value: "{amount}": must be greater than or equal to 0'
                causes.append({"field": path, "reason": "FieldValueInvalid", "message": message})
    if pod.get("restartPolicy") != "Never":
        causes.append({"field": "spec.template.spec.restartPolicy", "message": "Required value"})
    if causes:
        raise ApiError(422, "Invalid", f'Job.batch "{name}" is invalid', name=name, kind="Job", causes=causes)


def _merged(target: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    base = target if isinstance(target, dict) else {}
    merged = {**base, **{key: _merged(base.get(key), value) for key, value in change.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def _selected(document: Document, query: dict[str, str]) -> bool:
    labels = document["metadata"].get("labels", {})
    for condition in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = condition.partition("=")
        if labels.get(key) != value:
            return False
    for condition in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, wanted = condition.partition("=")
        held: Any = document
        for part in key.split("."):
            held = held.get(part) if isinstance(held, dict) else None
        if held != wanted:
            return False
    return True
