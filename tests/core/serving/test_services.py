"""What a modality has beside its routes: startup and shutdown, a folder, work in the background."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from sixfold.core.errors import ModelNotFound, NotReady, PermissionDenied, UsageError
from sixfold.core.messages import Priority
from sixfold.core.object_ids import STORE_ID, store_of
from sixfold.core.serving import lifecycle
from sixfold.core.serving.api import ModalityAPI, Route, Services
from sixfold.core.serving.context import new_context
from sixfold.core.serving.data_folder import DataFolder
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.services import ModalityServices
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.core.serving.fake_replica import EchoInput, FakeDirectory, FakeModel, FakeReplica
from tests.core.serving.kitchen_api import KitchenAPI
from tests.core.serving.server_thread import ServerThread


def services(
    model: FakeModel, settings: ServerSettings | None = None, folder: DataFolder | None = None
) -> ModalityServices:
    context = new_context(settings or ServerSettings(), FakeDirectory(model))
    return ModalityServices(context, folder or DataFolder(None), "kitchen")


async def test_work_in_the_background_ends_with_a_result(replica: FakeReplica) -> None:
    run = services(FakeModel("parrot", replicas=[replica])).background(
        "parrot", "echo", EchoInput(("a", "b")), tenant="anonymous"
    )
    assert (await run.result()).result.text == "a b"


async def test_work_in_the_background_can_be_read_as_it_comes_and_cancelled() -> None:
    replica = FakeReplica(by_hand=True)
    offered = services(FakeModel("parrot", replicas=[replica]))
    run = offered.background(
        "parrot", "echo", EchoInput(("a",)), tenant="anonymous", priority=Priority.BATCH, timeout_s=100.0
    )
    submitted = replica.next()
    request = submitted.request
    assert (request.tenant, request.priority) == ("anonymous", Priority.BATCH)
    assert request.deadline_s == pytest.approx(request.arrived_s + 100.0)
    submitted.say("a")
    async for events in run:
        assert len(events) == 1
        run.cancel()
        break
    assert submitted.cancelled.is_set()


async def test_work_in_the_background_has_the_rights_of_its_tenant(replica: FakeReplica) -> None:
    keys = (
        ApiKeySettings(name="ward", sha256=hash_key("a"), weight=3.0, priority=Priority.BATCH, models=("parrot",)),
        ApiKeySettings(name="guest", sha256=hash_key("b"), models=("other",)),
    )
    replica.by_hand = True
    offered = services(FakeModel("parrot", replicas=[replica]), ServerSettings(api_keys=keys))
    run = offered.background("parrot", "echo", EchoInput(("a",)), tenant="ward", priority=Priority.INTERACTIVE)
    request = replica.next().request
    assert (request.tenant, request.weight, request.priority) == ("ward", 3.0, Priority.BATCH)
    run.cancel()
    for tenant in ("guest", "nobody"):
        with pytest.raises(PermissionDenied):
            offered.background("parrot", "echo", EchoInput(("a",)), tenant=tenant)
    with pytest.raises(ModelNotFound):
        offered.background("owl", "echo", EchoInput(("a",)), tenant="ward")


async def test_waiting_for_a_model_that_loads_and_for_one_that_failed(replica: FakeReplica) -> None:
    model = FakeModel("parrot", replicas=[replica], state=ModelState.LOADING)
    states = iter((ModelState.LOADING, ModelState.READY))

    class LoadsSoon(FakeDirectory):
        def find(self, name: str) -> FakeModel | None:
            model.state = next(states)
            return model

    offered = ModalityServices(new_context(ServerSettings(), LoadsSoon(model)), DataFolder(None), "kitchen")
    assert (await offered.wait_ready("parrot", "echo", tenant="anonymous")).name == "parrot"
    failed = services(FakeModel("parrot", state=ModelState.FAILED))
    with pytest.raises(NotReady):
        await failed.wait_ready("parrot", "echo", tenant="anonymous")
    with pytest.raises(ModelNotFound):
        await failed.wait_ready("owl", "echo", tenant="anonymous")


def test_work_outlives_its_call_and_the_drain_waits_for_it() -> None:
    replica, api = FakeReplica(by_hand=True), KitchenAPI()
    with ServerThread(FakeModel("parrot", replicas=[replica]), apis=[api]) as served:
        assert served.ask("POST", "/v1/later", {"text": "soon"}).status == 202
        submitted = replica.next()
        assert served.server.drain.num_running == 1
        served.listening.lifecycle.drain_threadsafe()
        served.in_loop(lambda: None)
        submitted.finish("done")
    assert api.endings == ["done", "shutdown"]


def test_work_that_outlasts_the_drain_is_told_why() -> None:
    replica, api = FakeReplica(by_hand=True), KitchenAPI()
    settings = ServerSettings(drain_timeout_s=0.05)
    with ServerThread(FakeModel("parrot", replicas=[replica]), apis=[api], settings=settings) as served:
        assert served.ask("POST", "/v1/later", {"text": "never"}).status == 202
        submitted = replica.next()
    assert api.endings == ["draining", "shutdown"]
    assert submitted.cancelled.is_set()


def test_no_work_begins_while_the_server_drains(replica: FakeReplica) -> None:
    offered = services(FakeModel("parrot", replicas=[replica]))
    offered._context.drain.begin()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(NotReady):
        offered.background("parrot", "echo", EchoInput(("a",)), tenant="anonymous")


def test_the_folder_is_the_modalitys_own_and_ends_with_the_server_unless_configured(tmp_path: Path) -> None:
    api = KitchenAPI()
    with ServerThread(FakeModel("parrot"), apis=[api]):
        assert api.services is not None
        temporary = api.services.data_dir
        assert temporary.is_dir()
        assert temporary.stat().st_mode & 0o077 == 0
    assert not temporary.exists()
    with ServerThread(FakeModel("parrot"), apis=[api], settings=ServerSettings(data_dir=tmp_path / "d")):
        assert api.services.data_dir == tmp_path / "d" / "kitchen"
    assert (tmp_path / "d" / "kitchen").is_dir()


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path), DataFolder(tmp_path)
    first.of("a")
    with pytest.raises(UsageError, match=r"server\.data_dir: another server"):
        second.of("a")
    first.close()
    second.of("a")
    second.close()


def test_the_id_of_a_store_stays_with_a_configured_folder_and_ends_with_a_temporary_one(tmp_path: Path) -> None:
    first = DataFolder(tmp_path / "d")
    store_id = first.store_id
    first.close()
    (tmp_path / "d").rename(tmp_path / "moved")
    assert STORE_ID.fullmatch(store_id)
    assert DataFolder(tmp_path / "moved").store_id == store_id
    temporary = DataFolder(None)
    assert temporary.store_id == temporary.store_id != store_id
    before = temporary.store_id
    temporary.close()
    assert temporary.store_id != before


def test_a_store_whose_id_was_spoilt_is_the_operators_to_mend(tmp_path: Path) -> None:
    (tmp_path / "store_id").write_text("UPPER!")
    with pytest.raises(UsageError, match="no id of a store"):
        _ = DataFolder(tmp_path).store_id


def test_a_full_disk_at_the_first_start_leaves_no_store_without_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refuse)
        folder = DataFolder(tmp_path)
        with pytest.raises(UsageError, match=r"No space left on device\. Make room"):
            _ = folder.store_id
        folder.close()
    assert STORE_ID.fullmatch(DataFolder(tmp_path).store_id)


def test_what_a_server_keeps_names_the_store_that_its_probe_tells(tmp_path: Path) -> None:
    with ServerThread(FakeModel("parrot"), settings=ServerSettings(data_dir=tmp_path)) as served:
        store_id = served.ask("GET", "/ready").json["store_id"]
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        kept = client.files.create(file=("lines.jsonl", b"{}"), purpose="batch")
        endpoint: Any = "/v1/echo"
        batch = client.batches.create(input_file_id=kept.id, endpoint=endpoint, completion_window="24h")
    assert (tmp_path / "store_id").read_text() == store_id
    assert store_of(kept.id) == store_of(batch.id) == store_id


def test_a_folder_that_cannot_be_made_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"server\.data_dir"):
        DataFolder(tmp_path / "file" / "d").of("a")


class FailingAPI(ModalityAPI):
    modality = "failing"

    def routes(self) -> Sequence[Route]:
        return ()

    async def startup(self, services: Services) -> None:
        raise UsageError("no such thing")


def test_a_modality_that_does_not_start_keeps_the_server_from_starting() -> None:
    started = KitchenAPI()
    server = SixfoldServer([started, FailingAPI()], FakeDirectory(), ServerSettings(port=0))
    with pytest.raises(UsageError, match="no such thing"):
        lifecycle.run(server)
    assert started.endings == ["shutdown"]


def test_a_relative_data_dir_starts_at_the_configuration(tmp_path: Path) -> None:
    from sixfold.core.config import load_config

    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"models": {"a": {"source": "hf:a/b"}}, "server": {"data_dir": "jobs"}}))
    assert load_config(path, environ={}).server.data_dir == tmp_path / "jobs"
