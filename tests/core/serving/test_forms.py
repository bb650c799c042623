"""Forms, query strings and path parameters, over real connections."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from sixfold.core.errors import NotReady
from sixfold.core.files import FileStore
from sixfold.core.runtime import wire
from sixfold.core.serving.form_reader import FormLimits, read_form
from sixfold.core.serving.multipart import FormItem
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.upload import Upload
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import Answer, ServerThread

BOUNDARY = "----a-boundary"
KIND = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, data: bytes | str, *headers: str, rest: str = "") -> bytes:
    head = "\r\n".join((f'content-disposition: form-data; name="{name}"{rest}', *headers))
    return head.encode() + b"\r\n\r\n" + (data.encode() if isinstance(data, str) else data)


def file(name: str, data: bytes, filename: str = "a.wav", kind: str = "audio/wav") -> bytes:
    return part(name, data, f"content-type: {kind}", rest=f'; filename="{filename}"')


def body(*parts: bytes) -> bytes:
    lines = b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + each + b"\r\n" for each in parts)
    return lines + b"--" + BOUNDARY.encode() + b"--\r\n"


@pytest.fixture(scope="module")
def served() -> Iterator[ServerThread]:
    settings = ServerSettings(max_upload_bytes=3 * 1024 * 1024, max_body_bytes=4096, body_timeout_s=TIMEOUT_S)
    parrot = FakeModel("parrot", replicas=[FakeReplica()])
    with ServerThread(parrot, FakeModel("silent", family=None), apis=[KitchenAPI()], settings=settings) as server:
        yield server


def send(served: ServerThread, *parts: bytes, headers: Mapping[str, str] = KIND) -> Answer:
    return served.ask("POST", "/v1/form", body(*parts), headers)


def test_fields_and_files_become_what_the_schema_wants(served: ServerThread) -> None:
    answer = send(
        served,
        part("model", "whisper"),
        file("file", b"RIFF\x00\xff--not-a-boundary\r\n", "C:\\voices\\grüße.wav"),
        part("count", "3"),
        part("heat", "0.5"),
        part("loud", "true"),
        part("mode", "fancy"),
    )
    assert answer.status == 200
    assert answer.json == {
        "model": "whisper",
        "file": ["grüße.wav", "audio/wav", 24, "RIFF\x00ÿ--not-a-bounda"],
        "count": 3,
        "heat": 0.5,
        "loud": True,
        "mode": "fancy",
    }


@pytest.mark.parametrize("names", [("tags", "tags"), ("tags[]", "tags[]"), ("tags[1]", "tags[0]")])
def test_lists_may_be_written_in_three_ways(served: ServerThread, names: tuple[str, str]) -> None:
    answer = send(served, part(names[0], "b"), part(names[1], "a"))
    assert answer.json == {"tags": ["a", "b"] if "[1]" in names[0] else ["b", "a"]}
    assert send(served, part(names[0], "b")).json == {"tags": ["b"]}


def test_several_files_of_one_name_are_a_list_and_empty_ones_are_there(served: ServerThread) -> None:
    answer = send(served, file("image[]", b"1", "1.png", "image/png"), file("image[]", b"", "2.png", "image/png"))
    assert answer.json == {"image": [["1.png", "image/png", 1, "1"], ["2.png", "image/png", 0, ""]]}
    assert send(served, file("file", b"", "")).json == {}, "a browser's file input without a file"


def test_a_field_of_one_or_many_takes_both(served: ServerThread) -> None:
    assert send(served, part("words", "a")).json == {"words": "a"}
    assert send(served, part("words", "a"), part("words", "b")).json == {"words": ["a", "b"]}
    assert send(served, part("words[]", "a")).json == {"words": ["a"]}


def test_objects_may_be_json_or_brackets(served: ServerThread) -> None:
    vad = {"kind": "server", "threshold": 0.25}
    assert send(served, part("vad", '{"kind": "server", "threshold": 0.25}')).json == {"vad": vad}
    assert send(served, part("vad[kind]", "server"), part("vad[threshold]", "0.25")).json == {"vad": vad}
    assert send(served, part("vad", "auto")).json == {"vad": "auto"}
    assert send(served, part("extra", '{"a": 1}')).json == {"extra": {"a": 1}}
    assert send(served, part("extra[a]", "1")).json == {"extra": {"a": 1}}
    for parts in (
        [part("vads", '[{"kind": "x"}]')],
        [part("vads[]", '{"kind": "x"}')],
        [part("vads[0][kind]", "x")],
    ):
        assert send(served, *parts).json == {"vads": [{"kind": "x", "threshold": 0.5}]}


def test_urlencoded_forms_and_json_are_taken_too(served: ServerThread) -> None:
    kind = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    answer = served.ask("POST", "/v1/form", b"model=a+b%26&tags[]=x&tags[]=%C3%A4&count=2", kind)
    assert answer.json == {"model": "a b&", "tags": ["x", "ä"], "count": 2}
    assert served.ask("POST", "/v1/form", {"model": "m"}).json == {"json": "m"}
    assert served.ask("POST", "/v1/form", b"model=%ff", kind).error["code"] == "invalid_form"


@pytest.mark.parametrize(
    ("parts", "code", "param", "text"),
    [
        ([part("count", "three")], "invalid_type", "count", "integer"),
        ([part("heat", "9")], "invalid_value", "heat", "less than or equal to 2"),
        ([part("mode", "odd")], "invalid_value", "mode", "'plain' or 'fancy'"),
        ([part("mod", "m")], "unknown_parameter", "mod", "Did you mean"),
        ([part("model", "a"), part("model", "b")], "invalid_value", "model", "2 times"),
        ([part("file", "text")], "invalid_type", "file", "file of a multipart"),
        ([file("model", b"x")], "invalid_type", "model", "string"),
        ([part("vad", "{")], "invalid_value", "vad", "valid JSON"),
        ([part("extra", "1")], "invalid_type", "extra", "dictionary"),
        ([part("vad[kind]", "a"), part("vad[kind]", "b")], "invalid_value", "vad[kind]", "two ways"),
        ([part("vad[kind]", "a"), part("vad", "b")], "invalid_value", "vad", "choose one"),
        ([part("vad[king]", "a"), part("vad[kind]", "b")], "unknown_parameter", "vad.king", "Did you mean 'kind'?"),
        ([part("tags[0]", "a"), part("tags[0]", "a")], "invalid_value", "tags[0]", "twice"),
        ([part("model", b"\xff")], "invalid_value", "model", "UTF-8"),
    ],
)
def test_a_wrong_field_is_400_and_named(
    served: ServerThread, parts: Sequence[bytes], code: str, param: str, text: str
) -> None:
    answer = send(served, *parts)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert text in answer.error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no boundary at all",
        body(part("model", "m"))[:-20],
        b"--" + BOUNDARY.encode() + b"\r\nno header\r\n\r\n\r\n",
        body(b"content-type: text/plain\r\n\r\nx"),
        body(b"content-disposition: attachment; name=model\r\n\r\nx"),
        body(b"content-disposition: form-data\r\n\r\nx"),
        body(part("model", "bQ==", "content-transfer-encoding: base64")),
        body(part("model", "m", "x-long: " + "y" * 9000)),
        body(part("model", "m", *(f"x-{number}: y" for number in range(20)))),
        body(*(part("tags", "a") for _ in range(257))),
    ],
)
def test_a_malformed_form_is_400(served: ServerThread, raw: bytes) -> None:
    answer = served.ask("POST", "/v1/form", raw, KIND)
    assert (answer.status, answer.error["code"]) == (400, "invalid_form")


def test_a_form_without_a_boundary_and_other_kinds_are_400(served: ServerThread) -> None:
    missing = send(served, part("model", "m"), headers={"content-type": "multipart/form-data"})
    assert (missing.status, missing.error["code"]) == (400, "invalid_form")
    other = served.ask("POST", "/v1/form", b"x", {"content-type": "text/plain"})
    assert (other.status, other.error["code"]) == (400, "unsupported_content_type")


def test_256_parts_are_taken(served: ServerThread) -> None:
    assert len(send(served, *(part("tags", "a") for _ in range(256))).json["tags"]) == 256


def test_the_bytes_of_a_file_do_not_get_into_logs() -> None:
    assert "secret" not in repr(Upload("a.wav", "audio/wav", b"secret"))


def test_uploads_have_a_limit_of_their_own(served: ServerThread) -> None:
    assert send(served, file("file", b"x" * 2_000_000)).json["file"][2] == 2_000_000
    declared = send(served, file("file", b"x" * 4_000_000))
    assert (declared.status, declared.error["code"]) == (413, "payload_too_large")
    long_field = send(served, part("model", "x" * 1_100_000))
    assert (long_field.status, long_field.error["param"]) == (413, "model")
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert served.ask("POST", "/v1/form", b"model=" + b"x" * 5000, kind).status == 413


def test_a_chunked_upload_that_grows_too_large_is_413(served: ServerThread) -> None:
    connection = served.connect()
    raw = body(file("file", b"x" * 4_000_000))
    pieces = (raw[start : start + 100_000] for start in range(0, len(raw), 100_000))
    connection.request("POST", "/v1/form", pieces, KIND, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_an_upload_that_dribbles_in_is_refused_in_time() -> None:
    settings = ServerSettings(body_timeout_s=0.05)
    with (
        ServerThread(apis=[KitchenAPI()], settings=settings) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as connection,
    ):
        head = f"POST /v1/form HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\ncontent-type: {KIND['content-type']}\r\n"
        connection.sendall(head.encode() + b"\r\n--" + BOUNDARY.encode())
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"body_timeout" in answer


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        ('; filename="../../etc/passwd"', "passwd"),
        ('; filename=".."', ""),
        ('; filename="a;b\\"c.wav"', 'a;b"c.wav'),
        ("; filename=plain.wav", "plain.wav"),
        ("; filename*=UTF-8''gr%C3%BC%C3%9Fe.wav", "grüße.wav"),
        ("; filename=\"x.wav\"; filename*=UTF-8''..%2Fy.wav", "y.wav"),
        ("; filename=\"x; filename*=utf-8''evil\"", "x; filename*=utf-8''evil"),
        ("; filename=\"x.wav\"; filename*=nonsense''%FF", "x.wav"),
        ("; filename=\"x.wav\"; filename*=unicode_escape''%5Cud800.wav", "x.wav"),
        ("; filename*=ISO-8859-1''gr%FC%DFe.wav", "grüße.wav"),
        ('; filename="a\x07b.wav"', "ab.wav"),
    ],
)
def test_filenames_are_reduced_to_their_last_part(served: ServerThread, rest: str, name: str) -> None:
    assert send(served, part("file", "x", rest=rest)).json["file"][0] == name


def test_query_and_path_parameters_are_validated(served: ServerThread) -> None:
    answer = served.ask("GET", "/v1/things/a%20b?limit=5&include[]=x&include[]=y")
    assert (answer.status, answer.headers["x-thing"]) == (201, "yes")
    expected = {"thing": "a b", "tenant": "anonymous", "limit": 5, "after": None, "include": ["x", "y"]}
    assert answer.json == expected
    for query, param in (
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limits=1", "limits"),
        ("limit=1&limit=2", "limit"),
    ):
        wrong = served.ask("GET", f"/v1/things/a?{query}")
        assert (wrong.status, wrong.error["param"]) == (400, param)


def test_only_models_that_are_ready_and_able_are_listed(served: ServerThread) -> None:
    assert served.ask("GET", "/v1/models-of/echo").json == {"models": ["parrot"]}
    assert served.ask("GET", "/v1/models-of/sing").json == {"models": []}


def test_the_openapi_document_describes_forms_queries_and_media(served: ServerThread) -> None:
    document = served.ask("GET", "/openapi.json").json
    form = document["paths"]["/v1/form"]["post"]["requestBody"]["content"]
    assert set(form) == {"application/json", "multipart/form-data"}
    properties = document["components"]["schemas"]["KitchenForm"]["properties"]
    assert properties["image"]["items"] == {"type": "string", "format": "binary"}
    thing = document["paths"]["/v1/things/{thing_id}"]["get"]
    places = {parameter["name"]: parameter["in"] for parameter in thing["parameters"]}
    assert {"thing_id": "path", "limit": "query", "x-priority": "header"}.items() <= places.items()
    wav = document["paths"]["/v1/bytes"]["post"]["responses"]["200"]["content"]["audio/wav"]
    assert wav == {"schema": {"type": "string", "format": "binary"}}
    assert "101" in document["paths"]["/v1/socket"]["get"]["responses"]


def test_the_sockets_to_workers_carry_what_uploads_may_hold() -> None:
    largest = ServerSettings.model_fields["max_upload_bytes"].metadata[1].le
    assert largest + 1024 * 1024 < wire._MAX_FRAME_BYTES  # pyright: ignore[reportPrivateUsage]


async def read_pieces(pieces: Sequence[bytes], store: FileStore | None = None) -> list[FormItem]:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    limits = FormLimits(max_bytes=10**6, max_upload_bytes=10**9, timeout_s=TIMEOUT_S)
    return await read_form(receive, KIND, limits, store)


@given(
    st.lists(st.binary(max_size=60) | st.just(b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n"), max_size=4),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_files_arrive_as_they_were_sent_wherever_the_network_cuts(contents: list[bytes], cuts: list[int]) -> None:
    raw = body(*(file("f", content, f"{number}.bin", "") for number, content in enumerate(contents)))
    if not contents:
        return
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(edges)]
    items = asyncio.run(read_pieces(pieces))
    expected = [Upload(f"{number}.bin", "application/octet-stream", content) for number, content in enumerate(contents)]
    assert [item.value for item in items] == expected


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, NotReady), (errno.EIO, OSError)])
async def test_an_upload_that_the_disk_refuses_at_its_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: type[Exception]
) -> None:
    left = [1]

    def fsync(_descriptor: int) -> None:
        if not left[0]:
            raise OSError(number, os.strerror(number))
        left[0] -= 1

    monkeypatch.setattr(os, "fsync", fsync)
    store = FileStore(tmp_path, None)
    with pytest.raises(told):
        await read_pieces([body(file("file", b"first"), file("file", b"second"))], store)
    assert (list(tmp_path.iterdir()), store.num_bytes) == ([], 0)


async def test_parsing_a_large_message_lets_others_run() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    items = await read_pieces([body(file("f", b"x" * 10_000_000))])
    task.cancel()
    assert isinstance(items[0].value, Upload)
    assert turns > 100


async def test_a_body_made_to_be_slow_does_not_hold_the_loop_long() -> None:
    boundary = b"\r\n--" + BOUNDARY.encode()
    longest_s = 0.0  # of this thread's own time: that of other processes does not count

    async def other() -> None:
        nonlocal longest_s
        while True:
            begin_s = thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, thread_time() - begin_s)

    task = asyncio.create_task(other())
    gc.disable()  # it would look at all that other tests have left in this process
    try:
        await read_pieces([body(file("f", (boundary + b"x") * 50_000))])
    finally:
        gc.enable()
    task.cancel()
    assert longest_s < 0.5
