"""The server of the page: it answers in a browser, and refuses what is not meant for it."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from browser import dump, needs_browser
from small_reports import HOSTILE, small_report, small_sentence
from test_concept_view import Outline, text_of

from mlsm.pages import concept_view
from mlsm.pages.concept_server import LONGEST_BODY, ConceptServer

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[ConceptServer]:
    """A server whose answer is the small sentence with the given text as its first token."""

    def answer(text: str) -> str:
        if not text:
            raise ValueError("the text has no tokens")
        sentence = small_sentence()
        sentence.tokens[0] = text
        return sentence.to_json()

    server = ConceptServer(0)
    page = concept_view.concept_page(small_report(), is_served=True)
    thread = threading.Thread(target=server.serve, args=(page, answer))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    assert not thread.is_alive()


def ask(
    server: ConceptServer,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content, answer.headers


def test_the_page_and_its_answers(server: ConceptServer) -> None:
    status, page, headers = ask(server, "GET", "/")
    assert (status, headers.get_content_type()) == (200, "text/html")
    Outline(page)
    assert "connect-src 'self'" in page
    assert "default-src 'none'" in page
    text = json.dumps(HOSTILE[0]).encode()
    status, content, headers = ask(server, "POST", "/sentence", text, JSON)
    assert (status, headers.get_content_type()) == (200, "application/json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in headers["Server"]
    assert json.loads(content)["tokens"][0] == HOSTILE[0]
    assert "<" not in content
    status, content, headers = ask(server, "POST", "/sentence", b'""', JSON)
    assert (status, content, headers.get_content_type()) == (400, "the text has no tokens", "text/plain")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "evil.example"}, 403),
        ("GET", "/", None, {"Host": "127.0.0.1"}, 403),
        ("POST", "/sentence", b'"a"', JSON | {"Host": "evil.example:8765"}, 403),
        ("GET", "/sentence", None, {}, 404),
        ("GET", "/../../etc/passwd", None, {}, 404),
        ("GET", "/<script>alert(1)</script>", None, {}, 404),
        ("POST", "/", b'"a"', JSON, 404),
        ("POST", "/sentence", b'"a"', {"Content-Type": "text/plain"}, 415),
        ("POST", "/sentence", b'"a"', {}, 415),
        ("POST", "/sentence", b"not JSON", JSON, 400),
        ("POST", "/sentence", b'{"a": 1}', JSON, 400),
        ("POST", "/sentence", b"\xff\xfe\xfa", JSON, 400),
        ("POST", "/sentence", b"[" * 15_000, JSON, 400),
        ("POST", "/sentence", None, JSON | {"Content-Length": "-1"}, 411),
        ("POST", "/sentence", None, JSON | {"Content-Length": "9" * 5000}, 413),
        ("POST", "/sentence", b'"' + b"a" * LONGEST_BODY + b'"', JSON, 413),
        ("PUT", "/sentence", b'"a"', JSON, 501),
        ("DELETE", "/", None, {}, 501),
        ("<script>", "/", None, {}, 501),
    ],
)  # fmt: skip
def test_hostile_requests_are_refused_in_plain_text(
    server: ConceptServer, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    got, content, answered = ask(server, method, path, body, headers)
    assert got == status
    assert answered.get_content_type() == "text/plain"
    assert "script" not in content
    assert ask(server, "GET", "/")[0] == 200  # it goes on


def test_what_is_no_request_harms_nothing(server: ConceptServer) -> None:
    two_hosts = f"GET / HTTP/1.1\r\nHost: {server.hosts[0]}\r\nHost: evil.example\r\n\r\n".encode()
    for junk in (b"\x00\xff\r\n\r\n", two_hosts, b"G" * 100_000, b""):
        with socket.create_connection(server.server_address[:2], timeout=20) as client:
            try:
                client.sendall(junk)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(1 << 16)
            except OSError:  # the server has closed the connection
                answer = b""
        assert b"200" not in answer
    silent = socket.create_connection(server.server_address[:2])  # holds no other client up
    assert ask(server, "GET", "/")[0] == 200
    silent.close()


def test_only_this_machine_is_served_and_a_port_once(server: ConceptServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ValueError, match=f"port {server.server_port} is taken"):
        ConceptServer(server.server_port)


@needs_browser
def test_a_browser_shows_the_concepts_of_a_sentence(server: ConceptServer, tmp_path) -> None:
    address = f"http://{server.hosts[0]}/#text=%3Cimg%20src%3Dx%3E%20king"
    document = dump(address, tmp_path)
    assert "<img src=x> king" in text_of(document, "sentence")
    assert "The student's prediction" in text_of(document, "sentence")
    assert "<img" not in document
    problem = dump(f"http://{server.hosts[0]}/#text=" + "a" * LONGEST_BODY, tmp_path)
    assert text_of(problem, "sentence") == "the sentence is too long"
