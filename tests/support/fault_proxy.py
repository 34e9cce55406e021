"""An HTTP proxy between a job and its S3 server that answers wrongly on purpose."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

Fault = Callable[[int, str, str], str]
"""(number of the request, method, path) to the name of a fault, or ''."""

REFUSALS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "skew": (403, "RequestTimeTooSkewed"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}


def _xml(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>'.encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: ClassVar[int]
    fault: ClassVar[Fault]
    lock: ClassVar[threading.Lock]
    requests: ClassVar[list[int]]
    faults: ClassVar[list[str]]

    def handle_one(self) -> None:
        """Forward one request, or spoil it."""
        body = self._body()
        with self.lock:
            self.requests[0] += 1
            number = self.requests[0]
        kind = type(self).fault(number, self.command, self.path)  # may wait: that holds this request up
        if kind:
            self.faults.append(kind)
        if kind in REFUSALS:
            status, code = REFUSALS[kind]
            self._answer(status, _xml(code), [])
            return
        if kind == "hang":
            # Never an answer: the next thing to happen is that the client gives up.
            self.connection.recv(1)
            self.close_connection = True
            return
        if kind == "reset":
            self._reset()
            return
        status, headers, content = self._forward(body)
        if kind == "lost answer":
            self._reset()
        elif kind == "trickle":
            self._answer(status, content, headers, pieces=8)
        elif kind == "truncate" and content:
            self._answer(status, content, headers, sent=len(content) // 2)
        elif kind == "corrupt" and content:
            middle = len(content) // 2
            # Without the checksum that AWS sends along, nobody but the reader can notice.
            headers = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-checksum")]
            self._answer(status, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], headers)
        else:
            self._answer(status, content, headers)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815  # names of the base class

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            kept = [(n, v) for n, v in response.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
            return response.status, kept, content
        finally:
            connection.close()

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: list[tuple[str, str]],
        *,
        sent: int | None = None,
        pieces: int = 1,
    ) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            size = max(1, -(-len(content) // pieces))
            for start in range(0, len(content[:sent]), size):
                self.wfile.write(content[:sent][start : start + size])
                self.wfile.flush()
                if pieces > 1:
                    threading.Event().wait(0.02)  # the fault itself: a line that is slow
        if sent is not None:
            self.wfile.flush()
            self._reset()

    def _reset(self) -> None:
        # No lingering: the client sees a reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # of the base class
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or a connection that we closed ourselves."""


class HeldLine:
    """Holds every upload of an object back once a checkpoint is visible, until it is let go.

    Args:
        slow_s: Seconds that the objects before that take.
    """

    def __init__(self, slow_s: float = 0.0) -> None:
        self._slow_s = slow_s
        self.uploading = threading.Event()
        self.let_go = threading.Event()
        self._committed = False

    def __call__(self, _number: int, method: str, path: str) -> str:
        if method == "PUT" and "/checkpoints/step" in path:
            self._committed = True
        elif method == "PUT" and "/objects/" in path and self._committed:
            self.uploading.set()
            self.let_go.wait()
        elif method == "PUT" and "/objects/" in path:
            self.let_go.wait(self._slow_s)
        return ""


@contextmanager
def proxy(upstream: int, fault: Fault) -> Iterator[tuple[str, list[str]]]:
    """A proxy in front of a server.

    Args:
        upstream: Port of the server on loopback.
        fault: What to do to a request.

    Yields:
        Its URL, and the faults that it has made so far.
    """
    handler = type(
        "Handler",
        (_Handler,),
        {
            "upstream": upstream,
            "fault": staticmethod(fault),
            "lock": threading.Lock(),
            "requests": [0],
            "faults": [],
        },
    )
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.faults  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
