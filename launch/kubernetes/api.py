"""The Kubernetes API as this package uses it: plain JSON, every call bounded in time, refusals in a sentence.

The client's models differ from release to release, the API does not: answers are read as they come.
"""

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from indextts_job.errors import (
    AccessRefusedError,
    ConfigError,
    IndexTTSJobError,
    UnavailableError,
    findings_message,
)
from indextts_job.storage.retry import delays

Document = dict[str, Any]
Method = Callable[..., Any]
CONNECT_S, ANSWER_S = 10.0, 60.0
SILENCE_S = 300.0
"""A log or watch that is silent this long is asked for again: the connection may be dead."""
RETRY_S = 60.0
TRANSIENT = (429, 500, 502, 503, 504)
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Refusal(Exception):  # noqa: N818  # an answer, not always an error
    """The API answered with something else than success."""

    status: int
    document: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float = 0.0

    @property
    def already_there(self) -> bool:
        """Whether an object of that name exists; the other 409 is a conflict of versions."""
        return self.status == 409 and self.document.get("reason") == "AlreadyExists"

    @property
    def not_there(self) -> bool:
        """Whether the object is missing; a missing namespace is another matter."""
        return self.status == 404 and (self.document.get("details") or {}).get("kind") != "namespaces"

    def as_error(self, doing: str) -> IndexTTSJobError:
        """What it means for a person.

        Args:
            doing: What was refused, for example `create job indextts`.
        """
        message = str(self.document.get("message") or f"HTTP {self.status}").rstrip(".")
        if self.status == 401:
            return AccessRefusedError(f"{doing}: the cluster does not accept your credentials. Log in again.")
        if self.status == 403 and "exceeded quota" in message:
            return UnavailableError(f"{doing}: {message}. Free some of it, or ask for more.")
        if self.status == 403:
            return AccessRefusedError(f"{doing}: {message}. The ClusterRole `edit` in the namespace is enough.")
        if self.status in TRANSIENT:
            return UnavailableError(f"{doing}: {message}, after {RETRY_S:.0f} s of trying. Try again later.")
        causes = (self.document.get("details") or {}).get("causes") or []
        findings = [f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in causes]
        if findings:
            return ConfigError(findings_message(f"{doing}: refused by the cluster", findings, "Correct it and submit."))
        return ConfigError(f"{doing}: {message}.")


class BrokenError(Exception):
    """The connection failed or fell silent."""


class Namespace:
    """One namespace of a cluster: that of kubectl's context, or the one that this pod runs in."""

    def __init__(self, name: str, context: str, say: Callable[[str], None], wait: Callable[[float], object]) -> None:
        api, current = _connect(context)
        self.name = name or current
        self._address = api.configuration.host
        self.batch = client.BatchV1Api(api)
        self.core = client.CoreV1Api(api)
        self.say = say
        self.wait = wait

    def call(self, method: Method, doing: str, **arguments: Any) -> Document:  # noqa: ANN401  # the client's
        """One call, tried again while the server is busy or away.

        Raises:
            Refusal: It is there already, or not there.
            IndexTTSJobError: Any other refusal, and no answer.
        """
        pauses = delays(RETRY_S, random.Random())  # noqa: S311  # jitter
        said = False
        while True:
            try:
                document: Document = json.loads(self._request(method, ANSWER_S, arguments).data)
            except Refusal as refusal:
                if refusal.already_there or refusal.not_there:
                    raise
                error: IndexTTSJobError = refusal.as_error(doing)
                at_least_s = refusal.retry_after_s
                if refusal.status not in TRANSIENT:
                    raise error from refusal
            except BrokenError as broken:
                error = UnavailableError(f"{doing}: {self._address} cannot be reached ({broken}).")
                at_least_s = 0.0
            else:
                return document
            pause_s = next(pauses, None)
            if pause_s is None:
                raise error
            if not said:
                self.say(f"{error} Trying for {RETRY_S:.0f} s.")
                said = True
            self.wait(max(pause_s, at_least_s))

    def look(self, method: Method, name: str) -> Document | None:
        """An object, or None."""
        try:
            return self.call(method, f"look at {name}", name=name)
        except Refusal as refusal:
            if refusal.not_there:
                return None
            raise

    def create(self, method: Method, body: Document) -> bool:
        """Create an object; False if there is one of that name already."""
        doing = f"create {body['kind']} {body['metadata']['name']}"
        try:
            self.call(method, doing, body=body, field_validation="Strict")
        except Refusal as refusal:
            if refusal.already_there:
                return False
            raise
        return True

    def remove(self, method: Method, name: str, **options: str) -> None:
        """Delete an object, if it is there."""
        with contextlib.suppress(Refusal):  # not there
            self.call(method, f"delete {name}", name=name, **options)

    def stream(self, method: Method, **arguments: Any) -> Iterator[str]:  # noqa: ANN401  # the client's
        """Lines of an answer that goes on.

        Raises:
            Refusal: The API does not begin it.
            BrokenError: The connection failed, also in the middle.
        """
        response = self._request(method, SILENCE_S, arguments)
        try:
            rest = b""
            for piece in response.stream(amt=None, decode_content=True):
                *lines, rest = (rest + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise BrokenError(_cause(error)) from error
        finally:
            response.close()

    def _request(self, method: Method, answer_s: float, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401
        timeout = (CONNECT_S, answer_s)
        try:
            response: Any = method(namespace=self.name, _preload_content=False, _request_timeout=timeout, **arguments)
        except urllib3.exceptions.HTTPError as error:
            raise BrokenError(_cause(error)) from error
        except ApiException as error:  # the client up to release 36; status 0 is trouble with TLS
            if not error.status:
                raise BrokenError(str(error.reason)) from error
            raise _refusal(error.status, error.body, error.headers) from error
        except ValueError as error:  # the client from 37 on checks a body before it sends it
            raise ConfigError(f"the client refuses the manifest: {error}") from error
        response = getattr(response, "response", response)
        if not 200 <= response.status <= 299:
            raise _refusal(response.status, response.data, response.headers)
        return response


def _cause(error: urllib3.exceptions.HTTPError) -> str:
    """Without the objects that urllib3 names before it."""
    return str(getattr(error, "reason", None) or error).rpartition("): ")[2]


def _refusal(status: int, body: str | bytes | None, headers: Mapping[str, str] | None) -> Refusal:
    try:
        document = json.loads(body or b"")
    except ValueError:
        text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
        document = {"message": text.strip()[:300]}
    after = str((headers or {}).get("Retry-After", ""))
    return Refusal(status, document if isinstance(document, dict) else {}, float(after) if after.isdigit() else 0.0)


def _connect(context: str) -> tuple[Any, str]:
    """A client, and the namespace that its context names."""
    try:
        where = os.environ.get("KUBECONFIG")
        api = config.new_client_from_config(where, context or None)  # type: ignore[no-untyped-call]
        contexts, active = config.list_kube_config_contexts(where)  # type: ignore[no-untyped-call]
        chosen = next((entry for entry in contexts if entry["name"] == context), active)
        return api, (chosen.get("context") or {}).get("namespace", "default")
    except (config.ConfigException, yaml.YAMLError) as error:
        if context or not OWN_NAMESPACE.exists():
            message = f"no cluster to talk to: {str(error).rstrip('.')}. Make `kubectl get jobs` work first."
            raise ConfigError(message) from error
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    return client.ApiClient(), OWN_NAMESPACE.read_text(encoding="utf-8").strip()
