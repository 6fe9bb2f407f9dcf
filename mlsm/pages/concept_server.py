"""A server of the page of concepts on this machine, which answers with the concepts of a sentence.

It listens on the loopback address only. A page of another site that a browser has open cannot read from it:
the Host header must name this server, which a name that resolves to 127.0.0.1 does not, and a sentence must
come as JSON, which browsers send to another site only if it agrees. Nothing that is received is run, stored
or sent back as HTML.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket

from mlsm.log import say

ADDRESS = "127.0.0.1"
LONGEST_BODY = 20_000  # bytes of a request
SECONDS_TO_SEND = 10.0  # for a client to send its request
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Answer = Callable[[str], str]
"""From a sentence to its concepts as JSON. Raises ValueError, with what is wrong, for a sentence without."""


class ConceptServer(ThreadingHTTPServer):
    """The page at /, and at /sentence the concepts of the sentence that is posted there."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        """Take a port, 0 for any that is free; `serve` answers on it. Raises ValueError if it is taken or not
        allowed.
        """
        self.lock = threading.Lock()  # a model answers one question at a time
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ValueError(f"port {port} is taken or not allowed: name another with --port") from None

    @property
    def hosts(self) -> tuple[str, str]:
        """The Host headers of requests for this server."""
        return f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"

    def serve(self, page: str, answer: Answer) -> None:
        """Answer until Ctrl-C."""
        self.page, self.answer = page.encode(), answer
        say(f"the concepts are at http://{self.hosts[0]}/ until Ctrl-C")
        with self:
            self.serve_forever(poll_interval=0.2)

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Print nothing for a client that has gone."""


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ConceptServer
    timeout = SECONDS_TO_SEND
    server_version, sys_version = "mlsm", ""

    def do_GET(self) -> None:
        if self._is_refused():
            return
        if self.path != "/":
            return self._send(HTTPStatus.NOT_FOUND, "there is nothing here")
        self._send(HTTPStatus.OK, self.server.page, "text/html")

    def do_POST(self) -> None:
        if self._is_refused():
            return
        if self.path != "/sentence":
            return self._send(HTTPStatus.NOT_FOUND, "there is nothing here")
        if self.headers.get_content_type() != "application/json":
            return self._send(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a sentence is sent as a JSON text")
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit()):
            return self._send(HTTPStatus.LENGTH_REQUIRED, "the length of the sentence is missing")
        if len(size) > 9 or int(size) > LONGEST_BODY:
            return self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the sentence is too long")
        try:
            sentence = json.loads(self.rfile.read(int(size)))
            if not isinstance(sentence, str):
                raise ValueError("a sentence is sent as a JSON text")
            with self.server.lock:
                answer = self.server.answer(sentence)
        except RecursionError:
            return self._send(HTTPStatus.BAD_REQUEST, "a sentence is sent as a JSON text")
        except ValueError as error:
            return self._send(HTTPStatus.BAD_REQUEST, str(error))
        self._send(HTTPStatus.OK, answer.encode(), "application/json")

    def _is_refused(self) -> bool:
        """Whether the request is not for this server, which is then the answer."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and hosts[0].lower() in self.server.hosts:
            return False
        self._send(HTTPStatus.FORBIDDEN, f"this server is http://{self.server.hosts[0]}/")
        return True

    def _send(self, status: HTTPStatus, content: bytes | str, kind: str = "text/plain") -> None:
        """Send an answer and close the connection, with what the client may still want to send."""
        body = content.encode(errors="replace") if isinstance(content, str) else content
        self.close_connection = True
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error that http.server finds, such as another method, as plain text."""
        self._send(HTTPStatus(code), HTTPStatus(code).phrase)

    def log_message(self, *_: object) -> None:
        """Print nothing for a request."""
