"""LoRA adapters over HTTP: configured, loaded and unloaded while the server answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from openai import NotFoundError, OpenAI

from sixfold.core.serving.settings import hash_key
from tests.plugins.llm.conftest import write_model
from tests.plugins.llm.lora_folders import write_adapter
from tests.servers import DemoServer, start_server, stop_server

OPERATOR, WARD = "operator-key", "ward-key"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A random tiny model with one adapter of its configuration and two that may be loaded."""
    folder = tmp_path_factory.mktemp("adapters")
    base = write_model(folder / "base", "llama")
    (folder / "loadable").mkdir()
    for seed, name in enumerate(("law", "loadable/sql", "loadable/poems", "outside")):
        write_adapter(folder / name, base, seed=seed)
    (folder / "loadable" / "broken").mkdir()
    lora: dict[str, Any] = {"adapters": {"law": f"file:{folder / 'law'}"}, "load_from": [str(folder / "loadable")]}
    entry: dict[str, Any] = {
        "source": f"file:{base}",
        "family": "llm/transformers",
        "replicas": 2,
        "options": {"dtype": "float32", "kv_cache_bytes": 1 << 20, "lora": lora},
    }
    config = folder / "demo.yaml"
    keys = [
        {"name": "operator", "sha256": hash_key(OPERATOR), "changes_models": True},
        {"name": "ward", "sha256": hash_key(WARD)},
    ]
    config.write_text(yaml.safe_dump({"models": {"base": entry}, "server": {"port": 0, "api_keys": keys}}))
    server = start_server(config)
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture
def client(server: DemoServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=OPERATOR, max_retries=0, timeout=60.0) as client:
        yield client


def post(server: DemoServer, route: str, key: str = OPERATOR, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/{route}", json=body, headers=headers, timeout=60.0)


def answer(client: OpenAI, model: str, max_tokens: int = 16) -> str:
    asked = client.completions.create(
        model=model, prompt="the patient", max_tokens=max_tokens, temperature=0, extra_body={"ignore_eos": True}
    )
    assert asked.model == model
    return asked.choices[0].text


def test_adapters_are_models_whose_parent_is_the_base(server: DemoServer, client: OpenAI) -> None:
    listed = {model.id: (model.model_extra or {}).get("parent") for model in client.models.list()}
    assert listed == {"base": None, "law": "base"}
    assert client.models.retrieve("law").id == "law"
    assert answer(client, "law") != answer(client, "base")
    chat = client.chat.completions.create(
        model="law", messages=[{"role": "user", "content": "a"}], max_tokens=8, temperature=0
    )
    response = client.responses.create(model="law", input="a", max_output_tokens=8, temperature=0)
    plain = client.responses.create(model="base", input="a", max_output_tokens=8, temperature=0)
    assert chat.choices[0].message.content == response.output_text != plain.output_text


def test_a_key_changes_adapters_only_where_the_operator_allowed_it(server: DemoServer, client: OpenAI) -> None:
    folder = server.config.parent / "loadable" / "sql"
    refused = post(server, "load_lora_adapter", key=WARD, lora_name="sql", lora_path=str(folder))
    assert refused.status_code == 403
    assert "changes_models" in refused.json()["error"]["message"]
    assert post(server, "unload_lora_adapter", key=WARD, lora_name="law").status_code == 403
    assert {model.id for model in client.models.list()} == {"base", "law"}


def test_an_adapter_is_loaded_into_all_replicas_and_leaves_when_its_answers_end(
    server: DemoServer, client: OpenAI
) -> None:
    folder = server.config.parent / "loadable"
    with pytest.raises(NotFoundError):
        answer(client, "sql")
    loaded = post(server, "load_lora_adapter", lora_name="sql", lora_path=str(folder / "sql"))
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    expected = answer(client, "sql", 120)
    assert {answer(client, "sql", 120) for _ in range(4)} == {expected}
    stream = client.completions.create(
        model="sql",
        prompt="the patient",
        max_tokens=120,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text = next(iter(stream)).choices[0].text
    assert post(server, "unload_lora_adapter", lora_name="sql").status_code == 200
    with pytest.raises(NotFoundError):
        answer(client, "sql")
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == expected
    # Other weights under the same name are other weights, also for cached prefixes.
    assert post(server, "load_lora_adapter", lora_name="sql", lora_path=str(folder / "poems")).status_code == 200
    assert answer(client, "sql", 120) != expected
    assert post(server, "unload_lora_adapter", lora_name="sql").status_code == 200


def test_what_can_not_be_loaded_is_a_400_that_says_why_and_harms_nothing(server: DemoServer, client: OpenAI) -> None:
    folder = server.config.parent
    before = answer(client, "law")
    for path, param, word in (
        (folder / "outside", "lora_path", "load_from"),
        (folder / "loadable" / ".." / "outside", "lora_path", "load_from"),
        (folder / "loadable" / "broken", None, "adapter_config.json"),
    ):
        refused = post(server, "load_lora_adapter", lora_name="new", lora_path=str(path))
        error = json.loads(refused.text)["error"]
        assert (refused.status_code, error["param"]) == (400, param)
        assert word in error["message"]
    taken = post(server, "load_lora_adapter", lora_name="base", lora_path=str(folder / "loadable" / "sql"))
    assert taken.status_code == 400
    assert "is that of the model 'base' already" in taken.text
    assert post(server, "unload_lora_adapter", lora_name="nobody").status_code == 404
    assert post(server, "unload_lora_adapter", lora_name="base").status_code == 400
    assert {model.id for model in client.models.list()} == {"base", "law"}
    assert answer(client, "law") == before
