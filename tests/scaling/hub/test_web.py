"""The HTTP face of hub and agent refuses strangers, unknown paths and bodies without end."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from sixfold.scaling.hub.messages import SiteReport
from sixfold.scaling.hub.web import WebFace, decode

TOKEN = "token-of-this-test-only"


def echo(body: bytes) -> bytes:
    return msgspec.json.encode(len(body))


def check_report(body: bytes) -> bytes:
    return msgspec.json.encode(decode(body, SiteReport))


FACE = WebFace(
    {("GET", "/healthz"): echo, ("POST", "/echo"): echo, ("POST", "/report"): check_report}, CollectorRegistry(), TOKEN
)


async def ask(method: str, path: str, chunks: Iterable[bytes] = (), *, token: str | None = TOKEN) -> tuple[int, Any]:
    sent: list[Any] = []
    left = iter(chunks)

    async def receive() -> dict[str, Any]:
        chunk = next(left, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    await FACE({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize("token", [None, "", "another-token-of-length"])
async def test_strangers_reach_health_alone(token: str | None) -> None:
    assert (await ask("GET", "/healthz", token=token))[0] == 200
    for method, path in (("POST", "/echo"), ("GET", "/metrics"), ("GET", "/nothing")):
        assert (await ask(method, path, token=token))[0] == 401


async def test_a_body_comes_in_pieces_and_has_an_end() -> None:
    assert await ask("POST", "/echo", [b"ab", b"", b"c"]) == (200, "3")
    assert (await ask("POST", "/echo", [b"x" * 2**20] * 17))[0] == 413


async def test_an_unknown_path_names_the_known_ones() -> None:
    status, body = await ask("GET", "/plans")
    assert status == 404 and "POST /echo" in body


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"site_id": 3}', b'{"site_id": "eu"}', b"\xff"])
async def test_a_body_of_another_kind_is_the_senders_mistake(body: bytes) -> None:
    status, text = await ask("POST", "/report", [body])
    assert status == 400 and "not a SiteReport" in text
