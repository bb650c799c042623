"""What one key may not do through the gateway, however its request is written."""

from __future__ import annotations

import json

import pytest
from yarl import URL

from sixfold.core.messages import Priority
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


BOTH = (
    ApiKeySettings(name="a", sha256=hash_key("ka"), models=("m",), priority=Priority.INTERACTIVE),
    ApiKeySettings(name="b", sha256=hash_key("kb"), priority=Priority.BATCH),
)
MADE = Reply(parts=(b'{"id": "video_1", "object": "video"}',))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/videos/video_1", None),
        ("GET", "/v1/videos/video_1/content?variant=video", None),
        ("GET", "/v1/%76ideos/video%5F1", None),
        ("GET", "/v1//videos/video_1", None),
        ("GET", "/v1/videos/../videos/video_1", None),
        ("DELETE", "/v1/videos/video_1", None),
        ("POST", "/v1/videos/video_1/remix", {"prompt": "x"}),
        ("POST", "/v1/responses", {"model": "m", "previous_response_id": "video_1"}),
        ("POST", "/v1/responses", b'{"model": "m", "previous_\\u0072esponse_id": "video\\u005f1"}'),
        ("POST", "/v1/videos/video_2/remix", {"model": "m", "previous_response_id": "video_1"}),
        ("GET", "/v1/responses/never_seen", None),
        ("GET", "/v1/videos", None),
        ("GET", "/v1/videos/", None),
        ("GET", "/v1/files?limit=3", None),
    ],
)
async def test_an_object_is_for_the_key_that_made_it_alone_and_nobody_lists_them(
    method: str, path: str, body: object
) -> None:
    replica = ScriptedReplica("r", MADE, Reply(parts=(b'{"id": "video_2", "object": "video"}',)))
    async with fleet(replica, server=ServerSettings(port=0, api_keys=BOTH), replica_key="inner") as gateway:
        await gateway.ask_json({"model": "m"}, "/v1/videos", authorization="Bearer ka")
        await gateway.ask_json({"model": "m"}, "/v1/videos", authorization="Bearer kb")
        async with gateway.session.request(
            method,
            URL(gateway.url + path, encoded=True),
            data=body if isinstance(body, bytes) else None if body is None else json.dumps(body),
            headers={"authorization": "Bearer kb"},
        ) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
    assert len(replica.seen) == 2


async def test_the_key_that_made_an_object_has_all_of_it() -> None:
    replica = ScriptedReplica("r", MADE)
    async with fleet(replica, server=ServerSettings(port=0, api_keys=BOTH), replica_key="inner") as gateway:
        key = {"authorization": "Bearer ka"}
        await gateway.ask_json({"model": "m"}, "/v1/videos", **key)
        await gateway.ask_json(path="/v1/videos/video_1", method="GET", **key)
        await gateway.ask_json({"prompt": "x"}, "/v1/videos/video_1/remix", **key)
        await gateway.ask_json({"model": "m", "previous_response_id": "video_1"}, "/v1/responses", **key)
        await gateway.ask_json({"model": "m", "previous_response_id": None}, "/v1/responses", **key)
    assert len(replica.seen) == 5


async def test_the_replica_is_told_the_priority_of_the_clients_key() -> None:
    replica = ScriptedReplica("r")
    async with fleet(replica, server=ServerSettings(port=0, api_keys=BOTH), replica_key="inner") as gateway:
        await gateway.ask(authorization="Bearer ka")
        await gateway.ask(authorization="Bearer kb")
        await gateway.ask(authorization="Bearer ka", x_priority="standard")
        assert (await gateway.ask(authorization="Bearer kb", x_priority="interactive"))[0] == 403
    assert [seen.headers["x-priority"] for seen in replica.seen] == ["interactive", "batch", "standard"]


async def test_without_keys_the_priority_is_the_replicas_to_decide() -> None:
    replica = ScriptedReplica("r")
    async with fleet(replica) as gateway:
        await gateway.ask()
        await gateway.ask(x_priority="batch")
    assert [seen.headers.get("x-priority") for seen in replica.seen] == [None, "batch"]


async def test_replicas_with_keys_are_probed_with_one_and_check_the_clients_themselves() -> None:
    replica = ScriptedReplica("r")
    replica.keys = ("probe", "k1")
    async with fleet(replica, probe_key="probe") as gateway:
        assert (await gateway.ask(authorization="Bearer k1"))[0] == 200
        assert (await gateway.ask(authorization="Bearer wrong"))[0] == 401
        assert (await gateway.ask())[0] == 401
    assert [seen.headers["authorization"] for seen in replica.seen] == ["Bearer k1"]


async def test_the_replicas_key_serves_for_probes_where_no_other_is_set() -> None:
    replica = ScriptedReplica("r")
    replica.keys = ("inner",)
    async with fleet(replica, server=ServerSettings(port=0, api_keys=BOTH), replica_key="inner") as gateway:
        assert (await gateway.ask(authorization="Bearer ka"))[0] == 200


async def test_decisions_are_for_keys_that_may_change_models() -> None:
    admin = ApiKeySettings(name="admin", sha256=hash_key("k2"), changes_models=True)
    server = ServerSettings(port=0, api_keys=(WARD, admin))
    async with fleet(ScriptedReplica("a"), server=server, replica_key="inner") as gateway:
        gateway.gateway.decisions.changed(
            "site", "eu", "the next nearest", "nobody answered", objective="the plan's shares"
        )
        assert (await gateway.ask(path="/decisions", method="GET"))[0] == 401
        status, content, _headers = await gateway.ask(path="/decisions", method="GET", authorization="Bearer k1")
        assert (status, json.loads(content)["error"]["code"]) == (403, "permission_denied")
        told = await gateway.ask_json(path="/decisions", method="GET", authorization="Bearer k2")
        assert [(each["source"], each["from"]) for each in told["data"]] == [("gateway", "eu")]
        assert await gateway.metric("sixfold:decisions_total") == 1
