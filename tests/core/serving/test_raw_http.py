"""What attackers write to the socket itself: requests that servers read in two ways, and bytes without end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread

POST = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread(
        FakeModel("parrot", replicas=[FakeReplica()]), settings=ServerSettings(max_header_bytes=4096)
    ) as it:
        yield it


def all_answers(server: ServerThread, *writes: bytes) -> bytes:
    """Everything that the server says until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        try:
            for data in writes:
                connection.sendall(data)
            while part := connection.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass  # it did not wait for the rest
    return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(
            POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="length-and-chunks"
        ),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", id="chunks-and-length"
        ),
        pytest.param(POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", id="two-lengths"),
        pytest.param(POST + b"Content-Length: 4, 5\r\n\r\nabcde", id="list-of-lengths"),
        pytest.param(POST + b"Content-Length: +4\r\n\r\nabcd", id="signed-length"),
        pytest.param(POST + b"Content-Length: -4\r\n\r\nabcd", id="negative-length"),
        pytest.param(POST + b"Content-Length: 0x4\r\n\r\nabcd", id="hexadecimal-length"),
        pytest.param(POST + b"Content-Length: 99999999999999999999999\r\n\r\nabcd", id="length-that-overflows"),
        pytest.param(POST + b"Content-Length : 4\r\n\r\nabcd", id="space-before-colon"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="unknown-coding"),
        pytest.param(POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", id="chunked-not-last"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", id="two-codings"
        ),
        pytest.param(POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", id="folded-coding"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n", id="chunk-size-of-letters"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nab\r\n", id="chunk-size-overflows"
        ),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n", id="chunks-with-bare-lf"),
        pytest.param(GET + b"X-A: b\r\n c\r\n\r\n", id="folded-header"),
        pytest.param(GET + b"X-A: b\rX-B: c\r\n\r\n", id="bare-cr"),
        pytest.param(b"GET /health HTTP/1.1\nHost: a\n\n", id="bare-lf"),
        pytest.param(GET + b"X-A: \x00b\r\n\r\n", id="nul"),
        pytest.param(GET + b"X(A): b\r\n\r\n", id="no-token-as-name"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", id="no-host"),
        pytest.param(GET + b"Host: b\r\n\r\n", id="two-hosts"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls-to-a-plain-port"),
    ],
)
def test_what_could_be_read_in_two_ways_is_400_and_ends_the_connection(
    server: ServerThread, request_bytes: bytes
) -> None:
    answer = all_answers(server, request_bytes + SMUGGLED)
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is no request of its own"
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_probes_of_load_balancers_in_the_old_version_need_no_host(server: ServerThread) -> None:
    assert all_answers(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_body_of_a_get_is_no_request_of_its_own(server: ServerThread) -> None:
    inner = SMUGGLED
    outer = GET + b"Content-Length: %d\r\n\r\n" % len(inner) + inner
    last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = all_answers(server, outer + last)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"parrot" not in answer


def test_trailers_do_not_become_headers(server: ServerThread) -> None:
    body = json.dumps({"model": "parrot", "input": "a"}).encode()
    chunked = b"%x\r\n%s\r\n0\r\nX-Priority: nonsense\r\nX-Request-Id: evil\r\n\r\n" % (len(body), body)
    answer = all_answers(server, POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", chunked)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"evil" not in answer


@pytest.mark.parametrize(
    ("head", "flood"),
    [
        pytest.param(GET, b"X-A: b\r\n", id="headers"),
        pytest.param(GET + b"X-A: ", b"bbbbbbbb", id="one-header"),
        pytest.param(b"GET /", b"aaaaaaaa", id="url"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n", id="trailers"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: ", b"bbbbbbbb", id="one-trailer"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"extended", id="chunk-extension"),
    ],
)
def test_bytes_without_end_that_are_no_body_end_the_connection(server: ServerThread, head: bytes, flood: bytes) -> None:
    """Without a bound this would write for ever: the test ends by the server's hand."""
    part = flood * 512
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(head)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(100_000):
                connection.sendall(part)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_compressed_bodies_are_refused_before_they_grow(server: ServerThread, encoding: str) -> None:
    answer = server.ask("POST", "/v1/echo", b"\x1f\x8b", {"content-encoding": encoding})
    assert (answer.status, answer.error["code"]) == (400, "unsupported_content_encoding")
    form = {"content-encoding": encoding, "content-type": "multipart/form-data; boundary=x"}
    answer = server.ask("POST", "/v1/files", b"\x1f\x8b", form)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_content_encoding")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/..%2f..%2fetc%2fpasswd/content",
        "/v1/files/../../../etc/passwd",
        "/v1/files/%2e%2e/content",
        "/v1/files/file-%00/content",
        "/v1/batches/..%2fbatches.sqlite3",
        "/v1/files//etc/passwd/content",
    ],
)
def test_ids_are_never_paths(server: ServerThread, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.status == 404
    assert b"root:" not in answer.body
