"""The job of several nodes as a JobSet (jobset.x-k8s.io): when one node is lost for good, all start again together.

A plain Indexed Job replaces one pod at a time, and the others end and come back one by one. Pure.
"""

from typing import Any

import yaml

from indextts_job.errors import ConfigError

from .manifest import MEETING_PORT, QUEUE_LABEL, SEPARATOR
from .yaml_text import block

API_VERSION = "jobset.x-k8s.io/v1alpha2"
REPLICATED = "trainer"
"""Name of the only Job of the set; its pods are called NAME-trainer-0-INDEX."""


def as_jobset(manifest: str) -> str:
    """A rendered manifest with a JobSet in place of its Job and its Service.

    Args:
        manifest: What `manifest.render` gives for a job of several nodes.

    Raises:
        ConfigError: The job has one node.
    """
    documents = [yaml.safe_load(part) for part in manifest.split(SEPARATOR)]
    job = next(document for document in documents if document["kind"] == "Job")
    if job["spec"].get("completionMode") != "Indexed":
        raise ConfigError("--jobset is for several nodes: give --nodes.")
    # The controller of JobSets makes the Service.
    others = [document for document in documents if document["kind"] not in ("Job", "Service")]
    return SEPARATOR.join(block(document, 0) for document in [*others, _jobset(job)]) + "\n"


def _jobset(job: dict[str, Any]) -> dict[str, Any]:
    name, labels, spec = job["metadata"]["name"], job["metadata"]["labels"], dict(job["spec"])
    ttl, limit = spec.pop("ttlSecondsAfterFinished"), spec.pop("backoffLimit")
    suspended = {"suspend": True} if spec.pop("suspend", False) else {}
    pod = spec["template"]["spec"]
    pod.pop("subdomain", None)
    for variable in pod["containers"][0]["env"]:
        if variable["name"] == "INDEXTTS_MEETING":
            variable["value"] = f"{name}-{REPLICATED}-0-0.{name}:{MEETING_PORT}"
    plain = {key: value for key, value in labels.items() if key != QUEUE_LABEL}
    template = {"metadata": {"labels": plain}, "spec": {"backoffLimit": 0, **spec}}
    return {
        "apiVersion": API_VERSION,
        "kind": "JobSet",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            **suspended,
            "ttlSecondsAfterFinished": ttl,
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {
                "maxRestarts": limit,
                # Codes that no restart helps (65, 77, 78, 79) fail the Job by its policy, and the set with it.
                "rules": [
                    {"name": "noRestartHelps", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": [{"name": REPLICATED, "replicas": 1, "template": template}],
        },
    }
