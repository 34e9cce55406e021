"""The Kubernetes API as this package uses it: plain JSON, every call bounded in time, refusals in a sentence.

The client's models differ between its releases and the API does not, so answers are read as plain JSON.
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
from indextts_job.storage.patience import delays

Document = dict[str, Any]
Method = Callable[..., Any]
CONNECT_S, ANSWER_S = 10.0, 60.0
SILENCE_S = 300.0
"""A log or watch that is silent this long is requested again: the connection may be dead."""
RETRY_S = 60.0
"""How long a call is tried again while the server is busy or cannot be reached."""
TRANSIENT = (429, 500, 502, 503, 504)
"""HTTP statuses of a server that is busy, starting or behind a proxy that does not reach it."""
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Kubernetes writes this file into every pod that may use the API."""


@dataclass(frozen=True, slots=True)
class Refusal(Exception):  # noqa: N818  # an answer, not always an error
    """The API answered with a status other than success."""

    status: int
    document: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float = 0.0

    @property
    def already_there(self) -> bool:
        """Whether an object of that name exists. A 409 with another reason is a conflict of versions."""
        return self.status == 409 and self.document.get("reason") == "AlreadyExists"

    @property
    def not_there(self) -> bool:
        """Whether the object is missing. A missing namespace is a mistake in the call and does not count."""
        return self.status == 404 and (self.document.get("details") or {}).get("kind") != "namespaces"

    def as_error(self, doing: str) -> IndexTTSJobError:
        """The refusal as an error with a message for the user.

        Args:
            doing: What was refused, for example `create job indextts`.
        """
        message = str(self.document.get("message") or f"HTTP {self.status}").rstrip(".")
        if self.status == 401:
            return AccessRefusedError(f"{doing}: the cluster does not accept your credentials. Log in again.")
        if self.status == 403:
            return self._forbidden(doing, message)
        if self.status in TRANSIENT:
            return UnavailableError(f"{doing}: {message}, after {RETRY_S:.0f} s of trying. Try again later.")
        if findings := self._wrong_fields():
            return ConfigError(findings_message(f"{doing}: refused by the cluster", findings, "Correct it and submit."))
        return ConfigError(f"{doing}: {message}.")

    @staticmethod
    def _forbidden(doing: str, message: str) -> IndexTTSJobError:
        # The API has no reason or field of its own for an exhausted quota, only this text.
        if "exceeded quota" in message:
            return UnavailableError(f"{doing}: {message}. Free some of it, or ask for more.")
        return AccessRefusedError(f"{doing}: {message}. The ClusterRole `edit` in the namespace is enough.")

    def _wrong_fields(self) -> list[str]:
        causes = (self.document.get("details") or {}).get("causes") or []
        return [f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in causes]


class BrokenError(Exception):
    """The connection failed, or it was silent for too long."""


class Namespace:
    """One namespace of a cluster: the one of kubectl's context, or the one that this pod runs in."""

    def __init__(self, name: str, context: str, say: Callable[[str], None], wait: Callable[[float], object]) -> None:
        api, current = _connect(context)
        self.name = name or current
        self._address = api.configuration.host
        self.batch = client.BatchV1Api(api)
        self.core = client.CoreV1Api(api)
        self.say = say
        self.wait = wait

    def call(self, method: Method, doing: str, **arguments: Any) -> Document:  # noqa: ANN401  # the client's
        """One call; it is tried again while the server is busy or cannot be reached.

        Args:
            method: A method of the client.
            doing: What the call does, for messages: `create job indextts`.
            arguments: The arguments of the method, without the namespace.

        Raises:
            Refusal: The object exists already, or it does not exist.
            IndexTTSJobError: Any other refusal, or no answer.
        """
        pauses = delays(RETRY_S, random.Random())  # noqa: S311  # jitter
        said = False
        while True:
            try:
                document: Document = json.loads(self._request(method, ANSWER_S, arguments).data)
            except (Refusal, BrokenError) as failure:
                error, at_least_s = self._transient_error(failure, doing)
            else:
                return document
            pause_s = next(pauses, None)
            if pause_s is None:
                raise error
            if not said:  # the first time, so that the user knows why nothing happens
                self.say(f"{error} Trying for {RETRY_S:.0f} s.")
                said = True
            self.wait(max(pause_s, at_least_s))

    def _transient_error(self, failure: Refusal | BrokenError, doing: str) -> tuple[IndexTTSJobError, float]:
        """The error of a failure that may pass, and the seconds for which the server asks us to wait.

        Raises:
            Refusal: The object exists already, or it does not exist: the caller knows what that means.
            IndexTTSJobError: Any other refusal that a repetition does not change.
        """
        if isinstance(failure, BrokenError):
            return UnavailableError(f"{doing}: {self._address} cannot be reached ({failure})."), 0.0
        if failure.already_there or failure.not_there:
            raise failure
        error = failure.as_error(doing)
        if failure.status not in TRANSIENT:
            raise error from failure
        return error, failure.retry_after_s

    def look(self, method: Method, name: str) -> Document | None:
        """The object of that name; None if there is none."""
        try:
            return self.call(method, f"look at {name}", name=name)
        except Refusal as refusal:
            if refusal.not_there:
                return None
            raise

    def create(self, method: Method, body: Document) -> bool:
        """Create an object; False if an object of that name exists already."""
        doing = f"create {body['kind']} {body['metadata']['name']}"
        try:
            # Without strict validation the server only warns of an unknown field, and drops it.
            self.call(method, doing, body=body, field_validation="Strict")
        except Refusal as refusal:
            if refusal.already_there:
                return False
            raise
        return True

    def remove(self, method: Method, name: str, **options: str) -> None:
        """Delete an object, if it exists."""
        with contextlib.suppress(Refusal):  # not there
            self.call(method, f"delete {name}", name=name, **options)

    def stream(self, method: Method, **arguments: Any) -> Iterator[str]:  # noqa: ANN401  # the client's
        """The lines of a log or watch as they arrive.

        The client's own `Watch` builds its models and retries without a bound, so the stream is read here.

        Raises:
            Refusal: The API refused the request.
            BrokenError: The connection failed, at the start or later.
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
            # Without preloading the answer stays raw bytes: it can be streamed, and the client builds no models.
            response: Any = method(namespace=self.name, _preload_content=False, _request_timeout=timeout, **arguments)
        except urllib3.exceptions.HTTPError as error:
            raise BrokenError(_cause(error)) from error
        except ApiException as error:  # releases up to 36 of the client raise it for every status but success
            if not error.status:  # a failed TLS handshake
                raise BrokenError(str(error.reason)) from error
            raise _refusal(error.status, error.body, error.headers) from error
        except ValueError as error:  # releases from 37 on check a body before they send it
            raise ConfigError(f"the client refuses the manifest: {error}") from error
        # Releases from 37 on wrap urllib3's response.
        response = getattr(response, "response", response)
        if not 200 <= response.status <= 299:
            raise _refusal(response.status, response.data, response.headers)
        return response


def _cause(error: urllib3.exceptions.HTTPError) -> str:
    """The cause of an error, without the names of objects that urllib3 puts before it."""
    return str(getattr(error, "reason", None) or error).rpartition("): ")[2]


def _refusal(status: int, body: str | bytes | None, headers: Mapping[str, str] | None) -> Refusal:
    # Retry-After may also be a date; servers of Kubernetes send seconds.
    after = str((headers or {}).get("Retry-After", ""))
    return Refusal(status, _status_document(body), float(after) if after.isdigit() else 0.0)


def _status_document(body: str | bytes | None) -> Document:
    """The body of a refusal; a proxy in front of the API answers with text instead of JSON."""
    try:
        document = json.loads(body or b"")
    except ValueError:
        text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
        return {"message": text.strip()[:300]}
    return document if isinstance(document, dict) else {}


def _connect(context: str) -> tuple[Any, str]:
    """A client and its namespace, from kubectl's configuration or, inside a pod without one, from the pod."""
    try:
        return _connect_like_kubectl(context)
    except (config.ConfigException, yaml.YAMLError) as error:
        if context or not OWN_NAMESPACE.exists():
            message = f"no cluster to talk to: {str(error).rstrip('.')}. Make `kubectl get jobs` work first."
            raise ConfigError(message) from error
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    return client.ApiClient(), OWN_NAMESPACE.read_text(encoding="utf-8").strip()


def _connect_like_kubectl(context: str) -> tuple[Any, str]:
    # The client reads KUBECONFIG once, at import. It is passed on for a variable that was set later.
    where = os.environ.get("KUBECONFIG")
    api = config.new_client_from_config(where, context or None)  # type: ignore[no-untyped-call]
    contexts, active = config.list_kube_config_contexts(where)  # type: ignore[no-untyped-call]
    chosen = next((entry for entry in contexts if entry["name"] == context), active)
    return api, (chosen.get("context") or {}).get("namespace", "default")
