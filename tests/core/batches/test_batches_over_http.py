"""Files and batches as OpenAI's own client sees them, against a real server with a model that echoes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sixfold.core.batches.ledger import Files
from sixfold.core.messages import Priority
from sixfold.core.serving.settings import ApiKeySettings, BatchSettings, KeyLimits, ServerSettings, hash_key
from tests.core.faulty_sqlite import Faults
from tests.core.serving.fake_replica import EchoAPI, FakeModel, FakeReplica
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import ServerThread

ENDED = ("completed", "failed", "expired", "cancelled")
TIMEOUT_S = 20.0


def line(custom_id: str, words: object = "a b", **rest: object) -> dict[str, Any]:
    body = {"model": "parrot", "input": words}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/echo", "body": body, **rest}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def begin(client: openai.OpenAI, data: bytes, **rest: Any) -> Any:
    return create(client, client.files.create(file=("lines.jsonl", data), purpose="batch").id, **rest)


def create(client: openai.OpenAI, file_id: str, **rest: Any) -> Any:
    given: dict[str, Any] = {"endpoint": "/v1/echo", "completion_window": "24h", **rest}
    return client.batches.create(input_file_id=file_id, **given)


def wait(client: openai.OpenAI, batch_id: str, until: Callable[[Any], bool]) -> Any:
    batch: Any = None
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        batch = client.batches.retrieve(batch_id)
        if until(batch):
            return batch
    raise AssertionError(f"it is still {batch}")


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    return wait(client, batch_id, lambda batch: batch.status in ENDED)


def results(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def client_of(served: ServerThread, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(served: ServerThread) -> Iterator[openai.OpenAI]:
    with client_of(served) as client:
        yield client


def test_a_batch_goes_from_its_file_to_its_results(client: openai.OpenAI) -> None:
    data = jsonl(*(line(f"line-{number}", f"word {number}") for number in range(40)))
    batch = begin(client, data, metadata={"ward": "7"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/echo")
    assert batch.expires_at == pytest.approx(batch.created_at + 86_400, abs=2)
    done = ended(client, batch.id)
    assert done.status == "completed", done
    assert (done.model, done.metadata, done.error_file_id) == ("parrot", {"ward": "7"}, None)
    assert done.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    lines = results(client, done.output_file_id)
    assert [each["custom_id"] for each in lines] == [f"line-{number}" for number in range(40)]
    first = lines[0]
    assert set(first) == {"id", "custom_id", "response", "error"}
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"] == {"model": "parrot", "text": "word 0"}
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_lines_that_are_refused_go_to_the_error_file_and_the_others_to_the_output(client: openai.OpenAI) -> None:
    unknown = line("unknown", body={"model": "nobody", "input": "a"})
    misspelt = line("misspelt", body={"model": "parrot", "inputt": "a"})
    done = ended(client, begin(client, jsonl(line("good"), unknown, misspelt)).id)
    assert done.status == "completed"
    assert (done.request_counts.completed, done.request_counts.failed, done.model) == (1, 2, None)
    assert [each["custom_id"] for each in results(client, done.output_file_id)] == ["good"]
    refused = results(client, done.error_file_id)
    assert [(each["custom_id"], each["response"]["status_code"]) for each in refused] == [
        ("unknown", 404),
        ("misspelt", 400),
    ]
    assert refused[1]["response"]["body"]["error"]["param"] in ("input", "inputt")


def test_a_file_that_is_wrong_fails_the_batch_with_the_numbers_of_its_lines(client: openai.OpenAI) -> None:
    wrong = jsonl(line("a"), line("a")) + b"\n{not json\n" + jsonl(line("b", url="/v1/embeddings"))
    done = ended(client, begin(client, wrong).id)
    assert done.status == "failed"
    assert done.failed_at is not None
    found = [(error.line, error.code, error.param) for error in done.errors.data]
    assert found == [
        (2, "duplicate_custom_id", "custom_id"),
        (4, "invalid_json_line", None),
        (5, "mismatched_url", "url"),
    ]
    assert done.output_file_id is None


def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(batches=BatchSettings(max_rows=2))
    with (
        ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served,
        client_of(served) as client,
    ):
        batch = begin(client, jsonl(*(line(f"line-{word}", words=word) for word in ("a", "b", "c", "d"))))
        first, second = replica.next(), replica.next()  # in either order: they run side by side
        answered = f"line-{first.request.input.words[0]}"
        first.finish("one")
        third = replica.next()
        wait(client, batch.id, lambda batch: batch.request_counts.completed == 1)
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        done = ended(client, batch.id)
        assert done.status == "cancelled"
        assert done.cancelling_at <= done.cancelled_at
        assert (done.request_counts.total, done.request_counts.completed) == (4, 1)
        assert [each["custom_id"] for each in results(client, done.output_file_id)] == [answered]
        assert second.cancelled.wait(TIMEOUT_S)
        assert third.cancelled.wait(TIMEOUT_S)
        assert client.batches.cancel(batch.id).status == "cancelled", "once more changes nothing"


def test_lines_are_of_the_lowest_class_and_wait_while_others_use_the_model() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(batches=BatchSettings(max_rows=3, max_rows_beside_others=1))
    with (
        ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served,
        client_of(served) as client,
    ):
        connection = served.connect()
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "patient"}))
        patient = replica.next()
        assert patient.request.priority is Priority.STANDARD
        batch = begin(client, jsonl(*(line(f"line-{number}") for number in range(5))))
        beside = replica.next()
        assert beside.request.priority is Priority.BATCH
        # A second one would have come by now: each of these is a request to the server that shares the loop with it.
        for _ in range(30):
            assert client.batches.retrieve(batch.id).status in ("validating", "in_progress")
        assert replica.submitted.empty()
        patient.finish("well")
        assert connection.getresponse().status == 200
        connection.close()
        running = [beside, replica.next(), replica.next()]  # all three now
        for _ in range(2):
            running.pop(0).finish("ok")
            running.append(replica.next())
        for submitted in running:
            submitted.finish("ok")
        assert ended(client, batch.id).request_counts.completed == 5


def test_no_key_sees_another_keys_files_and_batches_and_lines_use_no_limits() -> None:
    keys = tuple(
        ApiKeySettings(name=name, sha256=hash_key(name), limits=KeyLimits(max_concurrent_requests=1))
        for name in ("ward", "lab")
    )
    settings = ServerSettings(api_keys=keys)
    with (
        ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served,
        client_of(served, "ward") as ward,
        client_of(served, "lab") as lab,
    ):
        batch = begin(ward, jsonl(*(line(f"line-{number}") for number in range(20))))
        done = ended(ward, batch.id)
        assert done.request_counts.completed == 20
        hidden: list[Callable[[], Any]] = [
            lambda: lab.batches.retrieve(batch.id),
            lambda: lab.batches.cancel(batch.id),
            lambda: lab.files.retrieve(done.input_file_id),
            lambda: lab.files.content(done.output_file_id),
            lambda: lab.files.delete(done.output_file_id),
            lambda: create(lab, done.input_file_id),
        ]
        for ask in hidden:
            with pytest.raises(openai.NotFoundError):
                ask()
        assert list(lab.batches.list()) == []
        assert list(lab.files.list()) == []
        assert [each.id for each in ward.batches.list()] == [batch.id]


def test_lists_are_turned_page_by_page(client: openai.OpenAI) -> None:
    made = [begin(client, jsonl(line("a"))) for _ in range(5)]
    first = client.batches.list(limit=2)
    assert (first.has_more, [each.id for each in first.data]) == (True, [made[4].id, made[3].id])
    assert [each.id for each in client.batches.list(limit=2)] == [each.id for each in reversed(made)]
    for each in made:
        ended(client, each.id)
    uploads = [each.id for each in client.files.list(purpose="batch", order="asc", limit=2)]
    assert uploads == [each.input_file_id for each in made]
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.list(after="batch_none")
    assert refused.value.param == "after"


def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(client: openai.OpenAI) -> None:
    data = bytes(range(256)) * 4000
    file = client.files.create(
        file=("../../sound.wav", data), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.filename, file.bytes, file.purpose, file.status) == ("sound.wav", len(data), "user_data", "processed")
    assert file.expires_at == pytest.approx(file.created_at + 3600, abs=1)
    assert client.files.content(file.id).content == data
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        client.files.content(file.id)
    assert gone.value.param == "file_id"


def test_a_file_that_a_batch_reads_cannot_be_deleted() -> None:
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served, client_of(served) as client:
        batch = begin(client, jsonl(line("a")))
        submitted = replica.next()
        with pytest.raises(openai.BadRequestError) as refused:
            client.files.delete(batch.input_file_id)
        assert refused.value.code == "file_in_use"
        submitted.finish("a")
        ended(client, batch.id)
        assert client.files.delete(batch.input_file_id).deleted


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"endpoint": "/v1/defect"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused_by_name(
    client: openai.OpenAI, change: dict[str, Any], param: str
) -> None:
    file = client.files.create(file=("lines.jsonl", jsonl(line("a"))), purpose="batch")
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, file.id, **change)
    assert refused.value.param == param


def test_uploads_over_the_limits_leave_nothing_on_the_disk(tmp_path: Any) -> None:
    settings = ServerSettings(
        data_dir=tmp_path, max_upload_bytes=300_000, batches=BatchSettings(max_storage_bytes=200_000)
    )
    with ServerThread(FakeModel("parrot"), settings=settings) as served, client_of(served) as client:
        with pytest.raises(openai.APIStatusError) as too_large:
            client.files.create(file=("big", b"x" * 310_000), purpose="user_data")
        assert too_large.value.status_code == 413
        with pytest.raises(openai.InternalServerError) as full:
            client.files.create(file=("big", b"x" * 210_000), purpose="user_data")
        assert (full.value.status_code, full.value.code) == (503, "storage_full")
        with pytest.raises(openai.BadRequestError) as wrong:
            client.files.create(file=("big", b"x" * 100), purpose="evals")
        assert wrong.value.param == "purpose"
        with pytest.raises(openai.BadRequestError) as empty:
            client.files.create(file=("big", b""), purpose="user_data")
        assert empty.value.param == "file"
        assert list((tmp_path / "batches" / "files").iterdir()) == []
        assert client.files.create(file=("good", b"x" * 190_000), purpose="user_data").bytes == 190_000


def test_a_key_has_a_bounded_number_of_open_batches() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(batches=BatchSettings(max_open_batches=1))
    with (
        ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served,
        client_of(served) as client,
    ):
        batch = begin(client, jsonl(line("a")))
        submitted = replica.next()
        with pytest.raises(openai.RateLimitError) as refused:
            begin(client, jsonl(line("a")))
        assert refused.value.code == "too_many_batches"
        submitted.finish("a")
        ended(client, batch.id)
        assert begin(client, jsonl(line("a"))).status == "validating"


def test_parallel_creations_do_not_exceed_the_bound_of_open_batches() -> None:
    settings = ServerSettings(batches=BatchSettings(max_open_batches=2, max_rows_beside_others=1))
    replica = FakeReplica(by_hand=True)
    with (
        ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served,
        client_of(served) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        file = client.files.create(file=("lines.jsonl", jsonl(line("a"))), purpose="batch")

        def begun(_number: int) -> bool:
            try:
                create(client, file.id)
            except openai.RateLimitError:
                return False
            return True

        assert sum(threads.map(begun, range(16))) == 2
        for _ in range(2):
            replica.next().finish("a")


def test_a_key_has_a_bounded_number_of_files_and_of_batches() -> None:
    settings = ServerSettings(batches=BatchSettings(max_files=2, max_batches=1))
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served:
        with client_of(served) as client, ThreadPoolExecutor(8) as threads:

            def upload(_number: int) -> str | None:
                try:
                    return client.files.create(file=("lines.jsonl", jsonl(line("a"))), purpose="batch").id
                except openai.RateLimitError as refused:
                    assert refused.code == "too_many_files"
                    return None

            kept = [each for each in threads.map(upload, range(12)) if each is not None]
            assert len(kept) == 2
            ended(client, create(client, kept[0]).id)
            with pytest.raises(openai.RateLimitError) as refused:
                create(client, kept[0])
            assert refused.value.code == "too_many_batches"
            assert upload(0) is None, "the result is one of the key's files"
            for each in client.files.list():
                client.files.delete(each.id)
            assert upload(0) is not None


def test_room_for_the_results_of_open_batches_is_kept_free_of_uploads() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(batches=BatchSettings(max_storage_bytes=200_000, max_rows=1))
    with (
        ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served,
        client_of(served) as client,
    ):
        batch = begin(client, jsonl(line("a"), line("b")))
        replica.next().finish("x" * 60_000)
        last = replica.next()  # begins when the first answer is stored
        with pytest.raises(openai.InternalServerError) as full:
            client.files.create(file=("big", b"x" * 100_000), purpose="user_data")
        assert full.value.code == "storage_full"
        last.finish("b")
        assert ended(client, batch.id).request_counts.completed == 2
        assert _stored_when_room_is_back(client, b"x" * 100_000).bytes == 100_000


def _stored_when_room_is_back(client: openai.OpenAI, content: bytes) -> Any:
    """The room comes back a moment after the batch is seen to have ended; ``Retry-After`` is for storage that stays full."""
    until_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return client.files.create(file=("big", content), purpose="user_data")
        except openai.InternalServerError as error:
            if error.code != "storage_full" or time.monotonic() > until_s:
                raise


def test_an_upload_whose_record_cannot_be_stored_leaves_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, "batches.sqlite3")
    num = Files.num

    async def num_then_full(files: Files, **rest: Any) -> int:
        found = await num(files, **rest)
        if files.store.ids():
            faults.num_commits = 1
        return found

    monkeypatch.setattr(Files, "num", num_then_full)
    settings = ServerSettings(data_dir=tmp_path)
    with ServerThread(FakeModel("parrot"), settings=settings) as served, client_of(served) as client:
        with pytest.raises(openai.InternalServerError):
            client.files.create(file=("a", b"x"), purpose="user_data")
        assert list((tmp_path / "batches" / "files").iterdir()) == []


def test_bytes_come_as_base64_and_forms_take_files_by_id_and_data_url(monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen = KitchenAPI()
    with (
        ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), apis=[EchoAPI(), kitchen]) as served,
        client_of(served) as client,
    ):
        spoken = {
            "custom_id": "s",
            "method": "POST",
            "url": "/v1/bytes",
            "body": {"model": "parrot", "text": '["a", "b"]'},
        }
        done = ended(client, begin(client, jsonl(spoken), endpoint="/v1/bytes").id)
        answer = results(client, done.output_file_id)[0]["response"]
        assert answer["body"] == {"content_type": "audio/wav", "data": "YWI="}

        sound = client.files.create(file=("sound.wav", b"RIFF"), purpose="user_data")
        forms: dict[str, dict[str, Any]] = {
            "id": {"file": sound.id, "count": 2, "tags": ["x"], "vad": {"kind": "k"}},
            "url": {"file": "data:audio/wav;base64,UklGRg==", "heat": 0.5, "loud": True},
            "none": {"file": "file-none"},
            "number": {"file": 7},
        }
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/upload", "body": {"model": "parrot", **fields}}
            for name, fields in forms.items()
        ]
        done = ended(client, begin(client, jsonl(*lines), endpoint="/v1/upload").id)
        by_id, by_url = (each["response"]["body"] for each in results(client, done.output_file_id))
        assert by_id["file"] == ["sound.wav", "application/octet-stream", 4, "RIFF"]
        assert (by_id["count"], by_id["tags"], by_id["vad"]["kind"]) == (2, ["x"], "k")
        assert by_url["file"][1:] == ["audio/wav", 4, "RIFF"]
        assert (by_url["heat"], by_url["loud"]) == (0.5, True)
        refused = [each["response"]["body"]["error"]["param"] for each in results(client, done.error_file_id)]
        assert refused == ["file", "file"]


def test_a_line_that_names_more_than_an_upload_may_have_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def read_bytes(path: Path) -> bytes:
        read.append(path.name)
        with path.open("rb") as file:
            return file.read()

    settings = ServerSettings(max_upload_bytes=100_000)
    parrot = FakeModel("parrot", replicas=[FakeReplica()])
    with ServerThread(parrot, apis=[EchoAPI(), KitchenAPI()], settings=settings) as served, client_of(served) as client:
        sound = client.files.create(file=("sound.wav", b"R" * 40_000), purpose="user_data").id
        forms: dict[str, dict[str, Any]] = {
            "one": {"file": [sound]},
            "some": {"image": [sound, sound]},
            "twice": {"file": [sound, sound]},
            "large": {"image": [sound] * 3},
            "many": {"image": [sound] * 300},
            "many of text": {"tags": ["x"] * 300},
            "nested": {"image": [[sound] * 300]},
        }
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/upload", "body": {"model": "parrot", **fields}}
            for name, fields in forms.items()
        ]
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        done = ended(client, begin(client, jsonl(*lines), endpoint="/v1/upload").id)
        answers = {each["custom_id"]: each["response"] for each in results(client, done.output_file_id)}
        refused = {each["custom_id"]: each["response"] for each in results(client, done.error_file_id)}
    assert set(answers) == {"one", "some"}, refused
    assert len(answers["some"]["body"]["image"]) == 2
    assert {each["status_code"] for each in refused.values()} == {400}
    params = {name: each["body"]["error"]["param"] for name, each in refused.items()}
    assert params == {"twice": "file", "large": "image", "many": None, "many of text": None, "nested": "image"}
    assert len(read) == 1 + 2 + 2, "of the large one the third is not read, and nothing of the others"


def test_a_server_without_batches_in_use_makes_no_folder_for_them(served: ServerThread) -> None:
    assert served.echo().status == 200
    answer = httpx.get(f"{served.url}/v1/batches/batch_none")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "batch_id")
