"""What a client sends reaches a replica as it is, what the replica answers reaches the client as it is."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.scaling.gateway.scripted import Reply, ScriptedReplica, events, fleet


async def test_bodies_queries_and_headers_pass_and_those_of_a_connection_do_not() -> None:
    replica = ScriptedReplica("a", Reply(status=201, parts=(b"\x00\xff",), headers={"x-own": "1", "server": "secret"}))
    async with fleet(replica) as gateway:
        body = b'{ "model" : "m", "prompt": "\\u00e9", "n": 1e0 }'
        status, content, headers = await gateway.ask(
            body,
            "/v1/completions?a=%26&b",
            x_request_id="r-1",
            traceparent="t",
            authorization="Bearer k",
            te="trailers",
        )
    (seen,) = replica.seen
    assert (status, content, headers["x-own"], headers["x-request-id"]) == (201, b"\x00\xff", "1", "r-1")
    assert "server" not in headers
    assert (seen.method, seen.target, seen.body) == ("POST", "/v1/completions?a=%26&b", body)
    assert (seen.headers["x-request-id"], seen.headers["traceparent"]) == ("r-1", "t")
    assert seen.headers["authorization"] == "Bearer k"
    assert "te" not in seen.headers
    assert seen.headers["host"] == replica.url.removeprefix("http://")


async def test_pages_of_other_origins_are_refused_by_the_gateway_and_its_own_pass_without_their_origin() -> None:
    replica = ScriptedReplica("a")
    server = ServerSettings(port=0, drain_timeout_s=5.0, cors_origins=("https://ward.example",))
    async with fleet(replica, server=server) as gateway:
        status, content, _ = await gateway.ask(origin="https://elsewhere.example")
        assert (status, replica.seen) == (403, [])
        assert b"cors_origins" in content
        for origin in (gateway.url, "https://ward.example"):
            assert (await gateway.ask(origin=origin))[0] == 200
    assert [seen.headers.get("origin") for seen in replica.seen] == [None, None]


async def test_events_arrive_while_the_replica_still_works() -> None:
    replica = ScriptedReplica("a", events("one", then="stall"))
    async with (
        fleet(replica) as gateway,
        gateway.session.post(gateway.url + "/v1/completions", json={"model": "m", "stream": True}) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream"
        assert await response.content.readuntil(b"\n\n") == b'data: {"text": "one"}\n\n'


async def test_a_client_that_leaves_ends_the_replicas_work() -> None:
    replica = ScriptedReplica("a", events("one", then="stall"))
    async with fleet(replica) as gateway:
        response = await gateway.session.post(gateway.url + "/v1/completions", json={"model": "m", "stream": True})
        await response.content.readuntil(b"\n\n")
        response.close()
        async with asyncio.timeout(20):
            await replica.left.wait()


async def test_a_client_that_leaves_before_the_first_byte_ends_the_replicas_work_too() -> None:
    replica = ScriptedReplica("a", Reply(parts=(), then="stall", chunked=True))
    async with fleet(replica) as gateway:
        asking = asyncio.create_task(gateway.ask())
        await replica.wait_seen(1)
        asking.cancel()
        async with asyncio.timeout(20):
            await replica.left.wait()


async def test_a_form_finds_its_model_and_passes_unchanged() -> None:
    one, two = ScriptedReplica("one", models=["other"]), ScriptedReplica("two", models=["ears"])
    async with fleet(one, two) as gateway:
        form = aiohttp.FormData()
        form.add_field("file", b'--x\r\nname="model"\r\n\r\nother' * 100, filename="a.wav")
        form.add_field("model", "ears")
        async with gateway.session.post(gateway.url + "/v1/audio/transcriptions", data=form) as response:
            assert await response.json() == {"by": "two"}
    assert two.seen[0].headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b"ears" in two.seen[0].body


async def test_models_of_all_replicas_are_listed_once() -> None:
    one, two = ScriptedReplica("one", models=["a", "b/c"]), ScriptedReplica("two", models=["b/c", "d"])
    one.listing[1]["max_model_len"] = 7
    async with fleet(one, two) as gateway:
        listing = await gateway.ask_json(path="/v1/models", method="GET")
        assert [each["id"] for each in listing["data"]] == ["a", "b/c", "d"]
        assert await gateway.ask_json(path="/v1/models/", method="GET") == listing
        assert (await gateway.ask_json(path="/v1/models/b/c", method="GET"))["max_model_len"] == 7
        status, content, _headers = await gateway.ask(path="/v1/models/e", method="GET")
        assert (status, json.loads(content)["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        pytest.param(b"{", 400, "invalid_json", None, id="no JSON"),
        pytest.param(b"[]", 400, "invalid_type", None, id="no object"),
        pytest.param(b'{"model": 5}', 400, "invalid_type", "model", id="a model that is no text"),
        pytest.param(b'{"model": ""}', 400, "invalid_value", "model", id="an empty model"),
        pytest.param(b'{"prompt": "x"}', 400, "missing_required_parameter", "model", id="no model"),
        pytest.param(b'{"model": "who"}', 404, "model_not_found", "model", id="an unknown model"),
        pytest.param(b'{"model": "m", "pad": "' + 3000 * b"x" + b'"}', 413, "payload_too_large", None, id="too long"),
    ],
)
async def test_what_no_replica_could_answer_gets_a_clear_error(
    body: bytes, status: int, code: str, param: str | None
) -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica, server=ServerSettings(port=0, max_body_bytes=2000)) as gateway:
        found, content, headers = await gateway.ask(body)
    error = json.loads(content)["error"]
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert headers["x-request-id"].startswith("req_")
    assert replica.seen == []


async def test_with_keys_the_gateway_checks_them_and_sends_its_own() -> None:
    replica = ScriptedReplica("a", models=["m", "secret"])
    keys = (ApiKeySettings(name="ward", sha256=hash_key("k1"), models=("m",)),)
    async with fleet(replica, server=ServerSettings(port=0, api_keys=keys), replica_key="inner") as gateway:
        assert (await gateway.ask())[0] == 401
        assert (await gateway.ask(authorization="Bearer wrong"))[0] == 401
        assert (await gateway.ask({"model": "secret"}, authorization="Bearer k1"))[0] == 404
        assert (await gateway.ask(authorization="Bearer k1"))[0] == 200
        listing = await gateway.ask_json(path="/v1/models", method="GET", authorization="Bearer k1")
        assert [each["id"] for each in listing["data"]] == ["m"]
    assert [seen.headers["authorization"] for seen in replica.seen] == ["Bearer inner"]


async def test_requests_about_an_object_go_to_the_replica_that_made_it() -> None:
    made = Reply(parts=(b'{"id": "video_1", "object": "video"}',))
    one, two = ScriptedReplica("one", made), ScriptedReplica("two", made)
    async with fleet(one, two) as gateway:
        await gateway.ask({"model": "m"}, "/v1/videos")
        for _poll in range(3):
            await gateway.ask(path="/v1/videos/video_1", method="GET")
        await gateway.ask({"model": "m", "previous_response_id": "video_1"}, "/v1/responses")
    (owner, other) = (one, two) if one.seen else (two, one)
    assert (len(owner.seen), len(other.seen)) == (5, 0)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"model": "m", "prompt": "x", "response_format": "url"}'),
        ("application/json", b'{"model": "m", "prompt": "x", "response_forma\\u0074": "\\u0075rl"}'),
        ("application/x-www-form-urlencoded", b"model=m&prompt=x&response_format=url"),
    ],
)
async def test_pictures_by_an_address_that_no_client_reaches_are_refused(kind: str, body: bytes) -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica) as gateway:
        status, content, _headers = await gateway.ask(body, "/v1/images/generations", content_type=kind)
        assert (status, json.loads(content)["error"]["param"]) == (400, "response_format")
        status, content, _headers = await gateway.ask(path="/v1/images/files/f.png", method="GET")
        assert (status, json.loads(content)["error"]["code"]) == (404, "not_found")
        assert b"b64_json" in content
    assert replica.seen == []


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file-a/content", "/v1/batches", "/v1/batches/batch_a/cancel"])
async def test_files_and_batches_are_not_shown_to_other_keys_of_the_gateway(path: str) -> None:
    replica = ScriptedReplica("a")
    keys = (ApiKeySettings(name="a", sha256=hash_key("ka")),)
    async with fleet(replica, server=ServerSettings(port=0, api_keys=keys), replica_key="inner") as gateway:
        status, content, _headers = await gateway.ask(path=path, method="GET", authorization="Bearer ka")
        assert status == 404
        assert b"acts_for_others" in content
    assert replica.seen == []


async def test_other_response_formats_pass() -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica) as gateway:
        await gateway.ask_json({"model": "m", "response_format": "b64_json"}, "/v1/images/generations")
        await gateway.ask_json({"model": "m", "response_format": {"type": "json_object"}}, "/v1/chat/completions")
    assert len(replica.seen) == 2


async def test_what_changes_every_server_is_not_sent_to_one_of_them() -> None:
    async with fleet(ScriptedReplica("a")) as gateway:
        status, content, _headers = await gateway.ask({"lora_name": "x"}, "/v1/load_lora_adapter")
    assert status == 404
    assert b"Send it to each of them" in content


async def test_health_readiness_and_metrics_are_the_gateways_own() -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica) as gateway:
        assert await gateway.ask_json(path="/health", method="GET") == {"status": "ok"}
        ready = await gateway.ask_json(path="/ready", method="GET")
        assert ready == {"status": "ready", "replicas": {replica.url: "up"}}
        await gateway.ask()
        assert await gateway.metric("sixfold:request_success_total", model_name="m") == 1
        assert await gateway.metric("sixfold:time_to_first_token_seconds_count", model_name="m") == 1
        assert await gateway.metric("sixfold:num_requests_running", replica=replica.url) == 0


@pytest.mark.parametrize(
    "line", [b"OPTIONS * HTTP/1.1", b"GET http://elsewhere.example/x HTTP/1.1", b"GET //a@b/ HTTP/1.1"]
)
async def test_no_form_of_a_target_reaches_another_host_or_breaks_the_gateway(line: bytes) -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listening.port)
        writer.write(line + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4"))
    assert all(seen.headers["host"] == replica.url.removeprefix("http://") for seen in replica.seen)
