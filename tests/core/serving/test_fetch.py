"""Fetching by URL: what is allowed, what is never reached, and every bound. Hosts are a loopback server under other names."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.fetch import Fetcher
from sixfold.core.serving.fetch_policy import check_allowed, is_public, parse_http_url
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import TIMEOUT_S
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import ServerThread


class Host(BaseHTTPRequestHandler):
    hung = threading.Event()
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012  # the test's, not the handler's

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["host"]))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/hang":
            self.hung.wait(TIMEOUT_S)
        elif self.path == "/chunked":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 5000)
        elif self.path == "/garbage":
            self.wfile.write(b"this is no HTTP at all\r\n\r\n")
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("content-length", "10")
            self.end_headers()
            self.wfile.write(b"x")
        else:
            body = b"a picture"
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("content-type", "image/png")
            if self.path == "/zip":
                self.send_header("content-encoding", "gzip")
            self.send_header("content-length", "5000" if self.path == "/large" else str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not the host's."""


@pytest.fixture
def port() -> Iterator[int]:
    Host.hung.clear()
    Host.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    Host.hung.set()
    server.shutdown()
    thread.join(TIMEOUT_S)
    server.server_close()


async def resolve(host: str, port: int) -> Sequence[str]:
    return {"pictures.example": ("127.0.0.1",), "inside.example": ("10.0.0.7",), "nowhere.example": ()}[host]


def fetcher(port: int, *, timeout_s: float = TIMEOUT_S, may_reach: Callable[[str], bool] | None = None) -> Fetcher:
    return Fetcher(
        (f"*.example:{port}",),
        timeout_s=timeout_s,
        resolve=resolve,
        may_reach=may_reach or (lambda address: address == "127.0.0.1"),
    )


async def test_the_content_comes_from_the_checked_address_under_the_urls_name(port: int) -> None:
    fetched = await fetcher(port).fetch(f"http://pictures.example:{port}/a?b=c#d", max_bytes=100)
    assert (fetched.data, fetched.content_type) == (b"a picture", "image/png")
    assert Host.seen == [("/a?b=c", f"pictures.example:{port}")]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "status 404"),
        ("/zip", "compresses"),
        ("/large", "larger than the 100 bytes"),
        ("/chunked", "larger than the 100 bytes"),
        ("/garbage", "proper HTTP"),
        ("/short", "cannot be fetched"),
    ],
)
async def test_what_cannot_be_had_is_the_clients_error(port: int, path: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        await fetcher(port).fetch(f"http://pictures.example:{port}{path}", max_bytes=100)


async def test_a_host_that_hangs_is_given_up(port: int) -> None:
    with pytest.raises(InvalidRequest, match=r"within 0\.1 s"):
        await fetcher(port, timeout_s=0.1).fetch(f"http://pictures.example:{port}/hang", max_bytes=100)


async def test_redirects_are_followed_three_times_and_checked_each_time(port: int) -> None:
    here = f"http://pictures.example:{port}"
    good = await fetcher(port).fetch(f"{here}/to//to//to//a", max_bytes=100)
    assert good.data == b"a picture"
    with pytest.raises(InvalidRequest, match="more than 3 times"):
        await fetcher(port).fetch(f"{here}/to//to//to//to//a", max_bytes=100)
    for target, reason in (
        (f"http://inside.example:{port}/", "cannot be reached"),
        ("http://other.test/", "does not fetch from"),
        ("file:///etc/passwd", "scheme 'file'"),
        (f"http://127.0.0.1:{port}/", "does not fetch from"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            await fetcher(port).fetch(f"{here}/to/{target}", max_bytes=100)


async def test_inner_addresses_and_names_without_one_look_the_same_from_outside(port: int) -> None:
    messages: list[str] = []
    for host in ("inside.example", "nowhere.example"):
        with pytest.raises(InvalidRequest) as refused:
            await fetcher(port).fetch(f"http://{host}:{port}/", max_bytes=100)
        messages.append(refused.value.message)
    assert messages[0] == messages[1]
    assert Host.seen == []


async def test_one_inner_address_among_many_is_enough_to_refuse(port: int) -> None:
    async def both(host: str, port: int) -> Sequence[str]:
        return ("127.0.0.1", "10.0.0.7")

    mixed = Fetcher(("*",), timeout_s=TIMEOUT_S, resolve=both, may_reach=lambda address: address == "127.0.0.1")
    with pytest.raises(InvalidRequest, match="cannot be reached"):
        await mixed.fetch("http://pictures.example/", max_bytes=100)


async def test_the_systems_resolver_is_asked_and_loopback_is_refused_by_default(port: int) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]", "2130706433", "127.1"):
        with pytest.raises(InvalidRequest, match="cannot be reached"):
            await Fetcher((f"*:{port}",), timeout_s=TIMEOUT_S).fetch(f"http://{host}:{port}/", max_bytes=100)
    assert Host.seen == []


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "192.0.2.1",
        "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::", "fc00::1", "fe80::1%eth0",
        "fec0::1", "ff02::1", "2001:db8::1", "nonsense", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "pattern", "allowed"),
    [
        ("https://a.example/x", "a.example", True),
        ("https://A.Example./x", "a.example", True),
        ("https://b.a.example/x", "a.example", False),
        ("https://b.a.example/x", "*.a.example", True),
        ("https://a.example/x", "*.a.example", False),
        ("https://evil-a.example/x", "*.a.example", False),
        ("https://a.example:8443/x", "a.example", False),
        ("https://a.example:8443/x", "a.example:8443", True),
        ("http://a.example/x", "*", True),
        ("http://a.example:22/x", "*", False),
        ("http://[2606:4700::1]/x", "[2606:4700::1]", True),
        ("http://[2606:4700::1]:81/x", "[2606:4700::1]:81", True),
        ("https://grüße.example/", "xn--gre-goa5f.example", False),
        ("https://bücher.example/", "xn--bcher-kva.example", True),
    ],
)
def test_hosts_are_allowed_by_pattern(url: str, pattern: str, allowed: bool) -> None:
    parts = parse_http_url(url)
    if allowed:
        check_allowed(parts, (pattern,))
    else:
        with pytest.raises(InvalidRequest, match="does not fetch from"):
            check_allowed(parts, (pattern,))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/", "//a.example/", "http://", "http://u:p@a.example/", "http://a.example:x/", "http://[::1/",
        "http://a.example/\r\nx: y", "http://a.example/ b", "http://a\\@b.example/", "http://a.example/\u00e4", "gopher:x",
    ],
)  # fmt: skip
def test_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_http_url(url)


async def test_data_urls_are_always_taken() -> None:
    none = Fetcher((), timeout_s=TIMEOUT_S)
    large = b"\x00\xff" * 1_000_000
    for url, data, kind in (
        ("data:image/png;base64," + base64.b64encode(b"\x89PNG").decode(), b"\x89PNG", "image/png"),
        ("data:,a%20b", b"a b", "text/plain"),
        ("DATA:text/plain;charset=utf-8;base64,YQ%3D%3D", b"a", "text/plain;charset=utf-8"),
        ("data:;base64," + base64.b64encode(large).decode(), large, "text/plain"),
    ):
        fetched = await none.fetch(url, max_bytes=len(large))
        assert (fetched.data, fetched.content_type) == (data, kind)
    for url in ("data:image/png;base64,@@@", "data:image/png", "data:;base64,\u00e4"):
        with pytest.raises(InvalidRequest):
            await none.fetch(url, max_bytes=100)
    with pytest.raises(InvalidRequest, match="larger than the 3 bytes"):
        await none.fetch("data:,abcd", max_bytes=3)


def test_a_server_fetches_nothing_unless_it_is_told_to() -> None:
    with ServerThread(apis=[KitchenAPI()]) as served:
        answer = served.ask("POST", "/v1/fetch", {"text": "https://a.example/x.png"})
        assert (answer.status, answer.error["code"]) == (400, "invalid_value")
        assert "data:" in answer.error["message"]
        taken = served.ask("POST", "/v1/fetch", {"text": "data:text/x,hi"})
        assert taken.json == {"data": "hi", "content_type": "text/x"}


def test_a_server_that_may_fetch_still_does_not_reach_inside(port: int) -> None:
    with ServerThread(apis=[KitchenAPI()], settings=ServerSettings(fetch_urls=(f"*:{port}",))) as served:
        answer = served.ask("POST", "/v1/fetch", {"text": f"http://localhost:{port}/"})
        assert answer.status == 400
    assert Host.seen == []
