"""What a Job needs besides itself: its configuration, its account, the names of its nodes."""

from collections.abc import Mapping

import yaml

from indextts_job.errors import UnavailableError
from launch.kubernetes.api import Document, Namespace, Refusal
from launch.kubernetes.differences import config_map_of, differences
from launch.kubernetes.manifest import APPLICATION, CONFIG_KEY

CAME_BETWEEN = 5
"""Times that somebody else may create or delete an object between two calls."""


class JobInputs:
    """The objects that one Job uses, in one namespace.

    The ConfigMap belongs to its Job: the cluster removes it when the Job is gone, however it went. The account does
    not: a trainer needs it to the last moment of its grace.
    """

    def __init__(self, api: Namespace) -> None:
        self._api = api

    def create(self, documents: Mapping[str, Document]) -> None:
        """Create what a manifest asks for, as far as it is not there."""
        core = self._api.core
        self._claim(documents["ConfigMap"])
        if "Service" in documents:
            self._api.create(core.create_namespaced_service, documents["Service"])
        account = documents.get("ServiceAccount")
        if account and not self._api.create(core.create_namespaced_service_account, account):
            name, annotations = account["metadata"]["name"], account["metadata"].get("annotations")
            if annotations:
                patch = {"metadata": {"annotations": annotations}}
                update = core.patch_namespaced_service_account
                self._api.call(update, f"update ServiceAccount {name}", name=name, body=patch)

    def _claim(self, config: Document) -> None:
        """Have the ConfigMap there and kept, also while the cluster removes it after an earlier Job that it served."""
        name = config["metadata"]["name"]
        for _ in range(CAME_BETWEEN):
            if self._api.create(self._api.core.create_namespaced_config_map, config) or self.release(name):
                return
        raise UnavailableError(f"ConfigMap {name}: somebody else creates and deletes it all the time. Try again later.")

    def release(self, name: str) -> bool:
        """Let a ConfigMap outlive the Job that it belongs to; False when it is not there."""
        return self._own(name, None)

    def give(self, config: Document, job: Document) -> None:
        """Let the cluster remove a ConfigMap when a job is gone."""
        owner = {"apiVersion": "batch/v1", "kind": "Job"} | {key: job["metadata"][key] for key in ("name", "uid")}
        if not self._own(config["metadata"]["name"], [owner]):  # removed after an earlier job, in this very moment
            self._claim(config)
            self._own(config["metadata"]["name"], [owner])

    def _own(self, name: str, owners: list[Document] | None) -> bool:
        patch = {"metadata": {"ownerReferences": owners}}
        update = self._api.core.patch_namespaced_config_map
        try:
            self._api.call(update, f"update ConfigMap {name}", name=name, body=patch)
        except Refusal:  # not there
            return False
        return True

    def config_map(self, job: Document) -> Document | None:
        """The ConfigMap that a Job mounts; None if it is not there."""
        name = config_map_of(job)
        return self._api.look(self._api.core.read_namespaced_config_map, name) if name else None

    def config_changes(self, live: Document, wanted: Document) -> list[str]:
        """How a configuration that is asked for differs from the one that a Job has.

        Args:
            live: The Job.
            wanted: The ConfigMap that is asked for.
        """
        config = self.config_map(live)
        if config is None:
            return ["its ConfigMap: nothing is there, a replaced pod could not start"]
        theirs, ours = (yaml.safe_load((one.get("data") or {}).get(CONFIG_KEY, "")) for one in (config, wanted))
        return [f"{CONFIG_KEY}: {change}" for change in differences(theirs, ours)]

    def remove(self, job: Document) -> None:
        """Remove what belongs to a Job that is gone, and leave what somebody else has made."""
        core, name = self._api.core, job["metadata"]["name"]
        for look, remove, called in (
            (core.read_namespaced_config_map, core.delete_namespaced_config_map, config_map_of(job)),
            (core.read_namespaced_service_account, core.delete_namespaced_service_account, name),
            (core.read_namespaced_service, core.delete_namespaced_service, name),
        ):
            left = self._api.look(look, called) if called else None
            if left and APPLICATION.items() <= (left["metadata"].get("labels") or {}).items():
                self._api.remove(remove, called)
