"""A stand-in for the Kubernetes API over HTTP: what a client and kubectl send, and what a cluster answers."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes.cluster import ApiError, Cluster, Document

KINDS = {
    "jobs": ("batch", "Job"),
    "configmaps": ("", "ConfigMap"),
    "serviceaccounts": ("", "ServiceAccount"),
    "services": ("", "Service"),
    "pods": ("", "Pod"),
    "events": ("", "Event"),
}
PATH = re.compile(r"/apis?/(?:batch/)?v1/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(?:/(log))?$")


class ApiServer:
    """One namespace named `lab`, on loopback."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.answers: list[tuple[int, str, str]] = []
        """(code, reason, message) of the next requests, whatever they ask."""
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, resource)."""
        self.on_request: Callable[[str, str], None] = lambda _verb, _resource: None
        server = self

        class Handler(_Handler):
            api = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Answer nothing any more."""
        self._http.shutdown()
        self._http.server_close()

    def admit(self, verb: str, namespace: str, resource: str, name: str, query: dict[str, str]) -> None:
        """Let a request pass, or refuse it."""
        self.requests.append((verb, f"{resource}/{name}", query))
        self.on_request(verb, resource)
        if self.answers:
            code, reason, message = self.answers.pop(0)
            raise ApiError(code, reason, message)
        if namespace != "lab":
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found', name=namespace, kind="namespaces")
        if (verb, resource) in self.forbidden:
            what = f'User "me" cannot {verb} resource "{resource}" in API group "" in the namespace "{namespace}"'
            raise ApiError(403, "Forbidden", f"{resource} is forbidden: {what}", kind=resource)


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def do_PATCH(self) -> None:
        self._answer("patch")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        del format, args

    def _answer(self, verb: str) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}") if length else {}
        try:
            self._dispatch(verb, address.path, query, body)
        except ApiError as error:
            self._send(error.code, error.body)

    def _dispatch(self, verb: str, path: str, query: dict[str, str], body: Document) -> None:
        known = DISCOVERY.get(path)
        if known:
            self._send(200, known)
            return
        found = PATH.match(path)
        if not found:
            raise ApiError(404, "NotFound", f"the server could not find the requested resource {path}")
        namespace, resource, name, log = found.groups()
        self.api.admit(verb, namespace, resource, name or "", query)
        cluster = self.api.cluster
        following = query.get("follow") in ("true", "True")
        if verb == "create":
            self._send(201, cluster.create(resource, body, query))
        elif verb == "delete":
            self._send(200, cluster.delete(resource, name, {**query, **body}))
        elif verb == "patch":
            if "merge-patch+json" not in self.headers["Content-Type"]:
                raise ApiError(415, "UnsupportedMediaType", f"not an object for {self.headers['Content-Type']}")
            self._send(200, cluster.patch(resource, name, body))
        elif log:
            self._stream(cluster.read_log(name, follow=following))
        elif name:
            self._send(200, cluster.find(resource, name))
        elif query.get("watch") in ("true", "True"):
            self._stream(json.dumps(event) for event in cluster.watch(resource, query))
        else:
            group, kind = KINDS[resource]
            version = f"{group}/v1" if group else "v1"
            items = cluster.list(resource, query)
            self._send(200, {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items})

    def _send(self, code: int, document: Document) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, lines: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in lines:
                content = f"{line}\n".encode()
                self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True


def _resources(version: str, names: tuple[str, ...]) -> Document:
    resources = [
        {
            "name": name,
            "singularName": KINDS[name][1].lower(),
            "namespaced": True,
            "kind": KINDS[name][1],
            "verbs": ["create", "delete", "get", "list", "patch", "watch"],
        }
        for name in names
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


_BATCH = {"groupVersion": "batch/v1", "version": "v1"}
DISCOVERY: dict[str, Document] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "batch", "versions": [_BATCH], "preferredVersion": _BATCH}],
    },
    "/api/v1": _resources("v1", ("configmaps", "serviceaccounts", "services", "pods", "events")),
    "/apis/batch/v1": _resources("batch/v1", ("jobs",)),
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
}
"""What kubectl asks first."""


@contextmanager
def running() -> Iterator[ApiServer]:
    """A server for the time of a test."""
    server = ApiServer()
    try:
        yield server
    finally:
        server.stop()
