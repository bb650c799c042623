"""What one key may not do through the gateway, however its request is written."""

from __future__ import annotations

import pytest

from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.scaling.gateway.scripted import Reply, ScriptedReplica, fleet

WARD = ApiKeySettings(name="ward", sha256=hash_key("k1"), models=("m",))
MULTIPART = "multipart/form-data; boundary=B"
URLENCODED = "application/x-www-form-urlencoded"


def part(head: str, value: str, boundary: str = "B") -> str:
    return f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("application/json", '{"prompt": "x"}', id="JSON without a model"),
        pytest.param("application/json", '{"model": "m", "\\u006dodel": "secret"}', id="an escaped key"),
        pytest.param(URLENCODED, "model=secret&prompt=x", id="urlencoded"),
        pytest.param(URLENCODED, "model=m&model%5B0%5D=secret", id="urlencoded twice"),
        pytest.param(MULTIPART, part('name="prompt"', "x") + "--B--\r\n", id="a form without a model"),
        pytest.param(MULTIPART, part('name="model[0]"', "secret") + "--B--\r\n", id="a model in brackets"),
        pytest.param(MULTIPART, part("name=model ; x=y", "secret") + "--B--\r\n", id="an odd head"),
        pytest.param(
            MULTIPART,
            part('name="file"; filename="a; name=model; b.wav"', "m") + part('name="model"', "secret") + "--B--\r\n",
            id="a name within a file's name",
        ),
        pytest.param(
            MULTIPART, part('name="model"', "m") + part('name="model"', "secret") + "--B--\r\n", id="two models"
        ),
        pytest.param(
            "multipart/form-data; xboundary=A; boundary=B",
            part('name="model"', "m", "A") + "--A--\r\n" + part('name="model"', "secret") + "--B--\r\n",
            id="two boundaries",
        ),
        pytest.param(MULTIPART, part('name="model"', "m"), id="a form without an end"),
        pytest.param("multipart/form-data", part('name="model"', "m") + "--B--\r\n", id="no boundary"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/videos", "/v1/audio/transcriptions"])
async def test_no_way_of_writing_a_model_gets_around_a_keys_permission(path: str, kind: str, body: str) -> None:
    replica = ScriptedReplica("a", models=["m", "secret"])
    async with fleet(replica, server=ServerSettings(port=0, api_keys=(WARD,)), replica_key="inner") as gateway:
        status, content, _headers = await gateway.ask(body.encode(), path, authorization="Bearer k1", content_type=kind)
    assert status in (400, 404), content
    assert replica.seen == []


async def test_a_second_content_type_is_refused() -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica) as gateway:
        kinds = [("content-type", URLENCODED), ("content-type", "application/json")]
        body = b'{"model": "m", "x": "&model=secret&"}'
        async with gateway.session.post(gateway.url + "/v1/completions", data=body, headers=kinds) as response:
            assert response.status == 400
    assert replica.seen == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (MULTIPART, part('name="file"; filename="a.wav"', "x" * 200_000) + part("name=model", "m") + "--B--\r\n"),
        (URLENCODED, "prompt=x&model=m"),
    ],
)
async def test_a_form_for_a_model_of_the_key_passes_unchanged(kind: str, body: str) -> None:
    replica = ScriptedReplica("a", Reply(), models=["m", "secret"])
    async with fleet(replica, server=ServerSettings(port=0, api_keys=(WARD,)), replica_key="inner") as gateway:
        await gateway.ask_json(body.encode(), "/v1/videos", authorization="Bearer k1", content_type=kind)
    assert [seen.body for seen in replica.seen] == [body.encode()]
