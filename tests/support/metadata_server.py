"""Metadata services of clouds on loopback, each speaking its own protocol; a test changes what they say."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, str]
Route = Callable[[str, str, dict[str, str]], Answer]
"""(method, path with query, headers in lower case) to status and body."""


class MetadataServer:
    """Answers as a function says."""

    def __init__(self, route: Route, headers: dict[str, str]) -> None:
        self.hangs = threading.Event()
        """Set: take requests and answer none."""
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                if server.hangs.is_set():
                    server._over.wait()
                    return
                given = {key.lower(): value for key, value in self.headers.items()}
                status, body = route(self.command, self.path, given)
                content = body.encode()
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = _reply  # noqa: N815  # names that the standard library calls

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                del format, args

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"127.0.0.1:{self._http.server_address[1]}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Answer nothing any more."""
        self._over.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving(route: Route, **headers: str) -> Iterator[MetadataServer]:
    """A service for the time of a test."""
    server = MetadataServer(route, {key.replace("_", "-"): value for key, value in headers.items()})
    try:
        yield server
    finally:
        server.stop()


class AwsMetadata:
    """IMDSv2: no answer without a token, 404 until there is a notice."""

    def __init__(self) -> None:
        self.tokens = ["first", "second", "third"]
        self.documents: dict[str, str] = {}

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        if (method, path) == ("PUT", "/latest/api/token"):
            return (200, self.tokens[0]) if "x-aws-ec2-metadata-token-ttl-seconds" in headers else (400, "")
        if headers.get("x-aws-ec2-metadata-token") != self.tokens[0]:
            return 401, ""
        document = self.documents.get(path.removeprefix("/latest/meta-data/"))
        return (404, "") if document is None else (200, document)


class GoogleMetadata:
    """Compute Engine: refuses whoever does not send its flavour."""

    def __init__(self) -> None:
        self.preempted = "FALSE"

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        if headers.get("metadata-flavor") != "Google":
            return 403, ""
        if (method, path) == ("GET", "/computeMetadata/v1/instance/preempted"):
            return 200, self.preempted
        return 404, ""


class AzureMetadata:
    """Instance metadata and scheduled events."""

    def __init__(self) -> None:
        self.events = '{"DocumentIncarnation": 1, "Events": []}'

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        if headers.get("metadata") != "true" or "api-version=" not in path:
            return 400, ""
        if path.startswith("/metadata/instance/compute/name"):
            return 200, "gpu_3"
        if path.startswith("/metadata/scheduledevents"):
            return 200, self.events
        return 404, ""
