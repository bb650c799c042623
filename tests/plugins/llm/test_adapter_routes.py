"""vLLM's routes for adapters: only from allowed folders, never out of them, and every refusal says what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import InvalidRequest, ModelNotFound, NotFound
from sixfold.core.serving.api import Call
from sixfold.plugins.llm.adapter_routes import load_adapter, unload_adapter
from sixfold.plugins.llm.lora_options import LoraOptions
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.plugin import FAMILY
from sixfold.plugins.llm.vllm_options import VllmOptions
from tests.plugins.llm.wire_fakes import FakeCall, FakeModel


class Server:
    """Models by name, and the options that a change made."""

    def __init__(self, **models: TransformersOptions) -> None:
        self.options = models

    def named(self, name: str) -> FakeModel:
        for base, options in self.options.items():
            names = FAMILY.variants(options)
            if name == base or name in names:
                allowed = options.lora is not None and bool(options.lora.load_from)
                info = ModelInfo(details={} if options.lora is None else {"loads_adapters": allowed})
                return FakeModel(name, info=info, variant=name if name in names else None)
        raise ModelNotFound(f"The model {name!r} does not exist.", param="model")

    async def ask(self, route: Callable[[Call], Any], **body: object) -> bytes:
        response = await route(cast(Call, ServedCall(body, self)))
        return bytes(response.body)

    def adapters(self, base: str = "base") -> dict[str, str]:
        lora = self.options[base].lora
        assert lora is not None
        return {name: ref.source for name, ref in lora.adapters.items()}


class ServedCall(FakeCall):
    """A call to a `Server`."""

    def __init__(self, body: object, server: Server) -> None:
        super().__init__(body)
        self._server = server

    async def model(self, name: str, operation: str) -> FakeModel:
        return self._server.named(name)

    def models(self, operation: str) -> Sequence[FakeModel]:
        return [self._server.named(name) for name in self._server.options]

    async def adjust(self, model: FakeModel, change: Callable[[Any], Any]) -> None:
        base = next(b for b, o in self._server.options.items() if model.name in (b, *FAMILY.variants(o)))
        old = self._server.options[base]
        new = change(old)
        assert FAMILY.adjusts(old, new)
        self._server.options[base] = new

    def respond(self, body: Any, *, media_type: str = "application/json") -> Any:
        assert media_type == "text/plain"
        return type("Answer", (), {"body": body})()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters" / "sql"
    folder.mkdir(parents=True)
    return folder


def options(**lora: Any) -> TransformersOptions:
    return TransformersOptions.model_validate({"lora": lora})


@pytest.fixture
def server(folder: Path) -> Server:
    return Server(base=options(load_from=[str(folder.parent)], max_adapters=2), plain=TransformersOptions())


async def test_an_adapter_is_loaded_and_unloaded_as_in_vllm(server: Server, folder: Path) -> None:
    answer = await server.ask(load_adapter, lora_name="sql", lora_path=str(folder))
    assert answer == b"Success: LoRA adapter 'sql' added successfully."
    assert server.adapters() == {"sql": f"file:{folder}"}
    answer = await server.ask(unload_adapter, lora_name="sql", lora_int_id=1)
    assert answer == b"Success: LoRA adapter 'sql' removed successfully."
    assert server.adapters() == {}


async def test_a_path_that_leads_out_of_the_allowed_folders_is_refused_like_one_that_is_not_there(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    (folder.parent / "link").symlink_to(outside)
    beside = tmp_path / "adapters-of-others"
    beside.mkdir()
    file = folder / "adapter_config.json"
    file.write_text("{}")
    messages: set[str] = set()
    for path in (outside, folder / ".." / ".." / "secret", folder.parent / "link", beside, tmp_path / "no", file):
        with pytest.raises(InvalidRequest) as caught:
            await server.ask(load_adapter, lora_name="sql", lora_path=str(path))
        assert caught.value.param == "lora_path"
        messages.add(caught.value.message)
    assert len(messages) == 1
    for text in ("sql", "../adapters/sql", "~/sql", f"{folder}\0"):
        with pytest.raises(InvalidRequest, match="absolute path"):
            await server.ask(load_adapter, lora_name="sql", lora_path=text)
    assert server.adapters() == {}


async def test_a_link_within_the_allowed_folders_is_followed(server: Server, folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)
    await server.ask(load_adapter, lora_name="sql", lora_path=str(folder.parent / "latest"))
    assert server.adapters() == {"sql": f"file:{folder}"}


@pytest.mark.parametrize("name", ["a b", "a\n", "x" * 201, "\u200b"])
async def test_a_name_that_nobody_could_send_is_refused(server: Server, folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await server.ask(load_adapter, lora_name=name, lora_path=str(folder))
    assert caught.value.param == "lora_name"


async def test_a_name_that_is_taken_and_one_adapter_too_many_are_refused(server: Server, folder: Path) -> None:
    await server.ask(load_adapter, lora_name="sql", lora_path=str(folder))
    with pytest.raises(InvalidRequest, match="is loaded already"):
        await server.ask(load_adapter, lora_name="sql", lora_path=str(folder))
    await server.ask(load_adapter, lora_name="law", lora_path=str(folder))
    with pytest.raises(InvalidRequest, match=r"lora\.max_adapters"):
        await server.ask(load_adapter, lora_name="third", lora_path=str(folder))


async def test_without_an_allowed_folder_the_routes_are_off(folder: Path) -> None:
    server = Server(base=options(adapters={"sql": f"file:{folder}"}))
    with pytest.raises(NotFound, match="load_from"):
        await server.ask(load_adapter, lora_name="law", lora_path=str(folder))
    with pytest.raises(NotFound, match="load_from"):
        await server.ask(load_adapter, lora_name="law", lora_path=str(folder), model="base")
    with pytest.raises(NotFound, match="load_from"):
        await server.ask(unload_adapter, lora_name="sql")


async def test_where_several_models_could_get_it_one_must_be_named(folder: Path) -> None:
    allowed = options(load_from=[str(folder.parent)])
    server = Server(base=allowed, other=allowed)
    with pytest.raises(InvalidRequest, match="base, other") as caught:
        await server.ask(load_adapter, lora_name="sql", lora_path=str(folder))
    assert caught.value.param == "model"
    await server.ask(load_adapter, lora_name="sql", lora_path=str(folder), model="other")
    assert (server.adapters("base"), list(server.adapters("other"))) == ({}, ["sql"])


async def test_only_an_adapter_can_be_unloaded(server: Server) -> None:
    with pytest.raises(InvalidRequest, match="no adapter"):
        await server.ask(unload_adapter, lora_name="base")
    with pytest.raises(ModelNotFound):
        await server.ask(unload_adapter, lora_name="nobody")


@pytest.mark.parametrize("given", [{"lora_name": "a"}, {"lora_name": "a", "lora_path": "/a", "load_inplace": True}])
async def test_unknown_and_missing_members_are_refused(server: Server, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await server.ask(load_adapter, **given)


@pytest.mark.parametrize("kind", [TransformersOptions, VllmOptions])
def test_only_adapters_may_change_while_a_model_serves(kind: Any) -> None:
    def of(**given: Any) -> Any:
        return kind.model_validate(given)

    one, two = {"adapters": {"a": "file:/a"}}, {"adapters": {"b": "file:/b"}}
    assert FAMILY.adjusts(of(lora=one), of(lora=two))
    assert FAMILY.adjusts(of(lora=one), of(lora={}))
    assert not FAMILY.adjusts(of(lora=one), of(lora=two | {"max_rank": 8}))
    assert not FAMILY.adjusts(of(lora=one), of(lora=two, max_model_len=99))
    assert not FAMILY.adjusts(of(), of(lora=two))
    assert not FAMILY.adjusts(of(lora=one), of())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapters": {"a b": "file:/a"}}, "text without spaces"),
        ({"adapters": {"a": "file:/a", "b": "file:/b"}, "max_adapters": 1}, "exceed max_adapters"),
        ({"load_from": ["adapters"]}, "absolute path"),
        ({"adapters": {"a": "file:a"}}, "absolute path"),
        ({"max_rank": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraOptions.model_validate(given)
