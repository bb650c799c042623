"""A batch runs on one server, so its file goes to one that has all that its lines name, and never around a key's bounds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.batches.lines import model_of, read_line, scan
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.scaling.gateway.upload_peek import peek_upload
from tests.scaling.gateway.scripted import RunningGateway, ScriptedReplica, fleet
from tests.scaling.gateway.test_objects import DIGITS, A, B, keeping

MULTIPART = "multipart/form-data; boundary=B"
WARD = ApiKeySettings(name="ward", sha256=hash_key("k1"), models=("m",))
ALL = ApiKeySettings(name="all", sha256=hash_key("k2"))
KEYS = ServerSettings(port=0, api_keys=(WARD, ALL))


def line(model: object, **body: object) -> str:
    return json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": model, **body}})


def form(content: str, purpose: str = "batch", name: str = "file") -> bytes:
    fields = f'name="purpose"\r\n\r\n{purpose}', f'name="{name}"; filename="x"\r\n\r\n{content}'
    return "".join(f"--B\r\nContent-Disposition: form-data; {field}\r\n" for field in fields).encode() + b"--B--\r\n"


async def upload(gateway: RunningGateway, content: str, purpose: str = "batch", **headers: str) -> tuple[int, Any]:
    status, answer, _headers = await gateway.ask(form(content, purpose), "/v1/files", content_type=MULTIPART, **headers)
    return status, json.loads(answer).get("error")


def num_seen(*replicas: ScriptedReplica) -> list[int]:
    return [len(replica.seen) for replica in replicas]


async def test_the_lines_of_a_batch_go_to_a_replica_that_has_their_models() -> None:
    replicas = keeping(A), keeping(B, models=("other", "third"))
    async with fleet(*replicas) as gateway:
        for _ in range(3):
            assert await upload(gateway, line("other") + "\n" + line("third") + "\nno line\n" + line("unknown")) == (
                200,
                None,
            )
    assert num_seen(*replicas) == [0, 3]


async def test_lines_for_models_that_no_one_replica_has_are_refused_with_what_to_do() -> None:
    replicas = keeping(A), keeping(B, models=("other",))
    async with fleet(*replicas) as gateway:
        status, error = await upload(gateway, line("m") + "\n" + line("other"))
    assert (status, error["param"]) == (400, "file")
    assert "send a file for each model" in error["message"]
    assert num_seen(*replicas) == [0, 0]


async def test_lines_that_name_files_go_where_these_are() -> None:
    replicas = keeping(A), keeping(B)
    async with fleet(*replicas) as gateway:
        for _ in range(3):
            assert await upload(gateway, line("m", file=f"file-{B}_{DIGITS}")) == (200, None)
        two = line("m", file=f"file-{B}_{DIGITS}", image=f"file-{A}_{DIGITS}")
        assert (await upload(gateway, two))[1]["param"] == "file"
        lost = await upload(gateway, line("m", file=f"file-zzzzzzzz_{DIGITS}"))
    assert (lost[0], lost[1]["code"]) == (503, "holder_not_up")
    assert num_seen(*replicas) == [0, 3]


async def test_a_server_that_is_left_alone_still_takes_what_no_other_can() -> None:
    replicas = keeping(A), keeping(B)
    async with fleet(*replicas) as gateway:
        for _ in range(5):
            gateway.gateway.fleet.failed(replicas[1].url)
        assert await upload(gateway, line("m", file=f"file-{B}_{DIGITS}")) == (200, None)
        assert await upload(gateway, line("m")) == (200, None)
    assert num_seen(*replicas) == [1, 1]


async def test_files_that_lines_will_name_stay_together_at_replicas_of_the_model_they_are_for() -> None:
    replicas = keeping(A), keeping(B, models=("ears",)), keeping("dddddddd", models=("ears",))
    async with fleet(*replicas) as gateway:
        for _ in range(4):
            assert await upload(gateway, "RIFF", "user_data", x_model="ears") == (200, None)
        status, error = await upload(gateway, "RIFF", "user_data", x_model="nobody")
    assert (status, error["param"]) == (404, "x-model")
    assert sorted(num_seen(*replicas)) == [0, 0, 4]
    assert replicas[0].seen == []


async def test_lines_whose_only_server_is_down_are_refused_for_now_and_files_for_no_model_go_anywhere() -> None:
    here, down = keeping(A), keeping(B, models=("other",))
    async with fleet(here, down) as gateway:
        await down.kill()
        await gateway.ask({"model": "other", "prompt": "p"})  # which finds it down
        assert await upload(gateway, "RIFF", "user_data") == (200, None)
        for _ in range(2):
            status, error = await upload(gateway, line("other"))
            assert (status, error["code"]) == (503, "not_ready")
    assert num_seen(here, down) == [1, 0]


@pytest.mark.parametrize(
    "lines",
    [
        line("secret"),
        line("m") + "\n" + line("secret"),
        "\n\r\n" + line("secret") + "\r\n",
        line("m")[:-1] + ', "body": {"model": "secret"}}',
        line("m").replace('"model"', '"mod\\u0065l"').replace('"m"', '"s\\u0065cret"'),
    ],
)
async def test_no_line_gets_around_a_keys_models(lines: str) -> None:
    replica = keeping(A, models=("m", "secret"), tells_tenants=True)
    async with fleet(replica, server=KEYS, replica_key="inner") as gateway:
        status, error = await upload(gateway, lines, authorization="Bearer k1")
        assert (status, error["code"]) == (404, "model_not_found")
        assert replica.seen == []
        assert await upload(gateway, line("m"), authorization="Bearer k1") == (200, None)
        assert await upload(gateway, lines, authorization="Bearer k2") == (200, None)
        body = {"input_file_id": f"file-{A}_{DIGITS}", "endpoint": "/v1/completions"}
        assert (await gateway.ask(body, "/v1/batches", authorization="Bearer k1"))[0] == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("application/x-www-form-urlencoded", b"purpose=batch&file=x"),
        (MULTIPART, b"--B\r\n"),
        (MULTIPART, form(line("m"))[:-7] + form(line("secret"), name="file[1]")),
    ],
)
async def test_what_is_no_one_file_is_no_upload(kind: str, body: bytes) -> None:
    replica = keeping(A, models=("m", "secret"), tells_tenants=True)
    async with fleet(replica, server=KEYS, replica_key="inner") as gateway:
        status, _content, _headers = await gateway.ask(body, "/v1/files", content_type=kind, authorization="Bearer k1")
    assert (status, replica.seen) == (400, [])


async def test_replicas_that_do_not_tell_keys_apart_keep_no_files_for_them() -> None:
    replica = keeping(A)
    async with fleet(replica, server=KEYS, replica_key="inner") as gateway:
        status, error = await upload(gateway, line("m"), authorization="Bearer k2")
    assert status == 404
    assert "acts_for_others" in error["message"]
    assert replica.seen == []


@given(
    st.lists(st.sampled_from(["m", "n", "", " ", "{}", "\r", "m\r", "3", "é", '{"model": "m"}']), max_size=12),
    st.booleans(),
)
def test_the_gateway_sees_every_model_that_a_server_would_run(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ends: bool
) -> None:
    lines = [
        line(text).replace('"1"', f'"{number}"') if text.strip().isalnum() else text
        for number, text in enumerate(texts)
    ]
    content = "\n".join(lines) + "\n" * ends
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    path.write_bytes(content.encode())
    found = scan(path, endpoint="/v1/completions", max_lines=100, max_line_bytes=10_000)
    run: set[str] = {model_of(read_line(path, ref)) for ref in found.lines}
    facts = asyncio.run(peek_upload({"content-type": MULTIPART}, form(content)))
    assert facts.models == run
