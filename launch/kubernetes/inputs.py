"""The objects that a Job needs: ConfigMap (configuration), ServiceAccount (identity), Service (host names)."""

from collections.abc import Mapping

import yaml

from indextts_job.errors import UnavailableError

from .api import Document, Method, Namespace, Refusal
from .differences import config_map_of, differences
from .manifest import APPLICATION, CONFIG_KEY

CAME_BETWEEN = 5
"""How often another client may create or delete an object between two calls before we give up."""


class JobInputs:
    """The objects that one Job uses, in one namespace.

    The ConfigMap is owned by its Job, so the cluster removes it with the Job. The ServiceAccount is not: a trainer
    needs it until the end of its grace period.
    """

    def __init__(self, api: Namespace) -> None:
        self._api = api

    def create(self, documents: Mapping[str, Document]) -> None:
        """Create the objects of a manifest that do not exist yet.

        Args:
            documents: The objects of the manifest by their kind.
        """
        self._claim(documents["ConfigMap"])
        if "Service" in documents:
            self._api.create(self._api.core.create_namespaced_service, documents["Service"])
        if "ServiceAccount" in documents:
            self._create_account(documents["ServiceAccount"])

    def _create_account(self, account: Document) -> None:
        core, metadata = self._api.core, account["metadata"]
        if self._api.create(core.create_namespaced_service_account, account):
            return
        # The account of an earlier submission may have another identity, which the new pods must not use.
        if annotations := metadata.get("annotations"):
            patch = {"metadata": {"annotations": annotations}}
            update, name = core.patch_namespaced_service_account, metadata["name"]
            self._api.call(update, f"update ServiceAccount {name}", name=name, body=patch)

    def _claim(self, config: Document) -> None:
        """Create the ConfigMap without an owner.

        An earlier Job may have used the same ConfigMap, and the cluster may remove it with that Job at any moment:
        either it is created, or it is there and loses its owner, or both fail because it vanished in between.
        """
        name = config["metadata"]["name"]
        for _ in range(CAME_BETWEEN):
            if self._api.create(self._api.core.create_namespaced_config_map, config) or self.release(name):
                return
        raise UnavailableError(
            f"ConfigMap {name}: another client creates and deletes it all the time. Try again later."
        )

    def release(self, name: str) -> bool:
        """Remove the owner of a ConfigMap, so that it outlives the Job; False if there is no such ConfigMap."""
        return self._set_owners(name, None)

    def give(self, config: Document, job: Document) -> None:
        """Make a Job the owner of a ConfigMap, so that the cluster removes it with the Job."""
        owner = {"apiVersion": "batch/v1", "kind": "Job"} | {key: job["metadata"][key] for key in ("name", "uid")}
        # The cluster may just have removed it together with an earlier Job.
        if not self._set_owners(config["metadata"]["name"], [owner]):
            self._claim(config)
            self._set_owners(config["metadata"]["name"], [owner])

    def _set_owners(self, name: str, owners: list[Document] | None) -> bool:
        patch = {"metadata": {"ownerReferences": owners}}
        update = self._api.core.patch_namespaced_config_map
        try:
            self._api.call(update, f"update ConfigMap {name}", name=name, body=patch)
        except Refusal:  # not there
            return False
        return True

    def config_map(self, job: Document) -> Document | None:
        """The ConfigMap that a Job mounts; None if it does not exist."""
        name = config_map_of(job)
        return self._api.look(self._api.core.read_namespaced_config_map, name) if name else None

    def config_changes(self, live: Document, wanted: Document) -> list[str]:
        """How a wanted configuration differs from the one that a Job uses, a line for each key.

        Args:
            live: The Job in the cluster.
            wanted: The wanted ConfigMap.
        """
        config = self.config_map(live)
        if config is None:
            return ["its ConfigMap: missing, so a replaced pod could not start"]
        # The values are compared and not the text: a changed comment is no other configuration.
        theirs, ours = (yaml.safe_load((one.get("data") or {}).get(CONFIG_KEY, "")) for one in (config, wanted))
        return [f"{CONFIG_KEY}: {change}" for change in differences(theirs, ours)]

    def remove(self, job: Document) -> None:
        """Remove the objects of a Job that is gone, except those that this program did not create."""
        core, config = self._api.core, config_map_of(job)
        if config:
            self._remove_own(core.read_namespaced_config_map, core.delete_namespaced_config_map, config)
        self.remove_left(job["metadata"]["name"])

    def remove_left(self, name: str) -> bool:
        """Remove what the cluster leaves of a Job that it removes after its time: account and Service.

        Args:
            name: Name of the Job, which has to be gone.

        Returns:
            Whether there was something.
        """
        core = self._api.core
        account = not self._has_users(name) and self._remove_own(
            core.read_namespaced_service_account, core.delete_namespaced_service_account, name
        )
        service = self._remove_own(core.read_namespaced_service, core.delete_namespaced_service, name)
        return account or service

    def _has_users(self, account: str) -> bool:
        """Whether a Job of the namespace names an account: its next pod could not start without it."""
        jobs = self._api.call(self._api.batch.list_namespaced_job, "list jobs")["items"]
        users = [
            job["metadata"]["name"]
            for job in jobs
            if job["spec"]["template"]["spec"].get("serviceAccountName") == account
            and job["metadata"]["name"] != account
        ]
        if users:
            self._api.say(f"service account {account} stays: job {', '.join(users)} uses it")
        return bool(users)

    def _remove_own(self, look: Method, remove: Method, name: str) -> bool:
        """Remove an object that this program has created; whether there was one."""
        left = self._api.look(look, name)
        if not left or not APPLICATION.items() <= (left["metadata"].get("labels") or {}).items():
            return False
        self._api.remove(remove, name)
        return True
