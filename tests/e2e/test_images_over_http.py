"""OpenAI's client shows images to a model that reads them: over HTTP, through the worker process, with a tiny model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import yaml

from tests.plugins.llm.vision_models import part, picture, write_vision_model
from tests.servers import DemoServer, start_server, stop_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    folder = tmp_path_factory.mktemp("see")
    (folder / "model").mkdir()
    source = write_vision_model(folder / "model", "smolvlm")
    entry = {"source": f"file:{source}", "options": {"dtype": "float32"}}
    config = folder / "see.yaml"
    config.write_text(yaml.safe_dump({"server": {"port": 0}, "models": {"see": entry}}))
    started = start_server(config)
    try:
        yield started
    finally:
        assert stop_server(started) == 0


@pytest.fixture
def client(server: DemoServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def url_of(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(part(picture(seed)).data).decode()


def asked(client: Any, seed: int) -> Any:
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url_of(seed)}}]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="see", messages=messages, max_tokens=8, temperature=0)


def test_chats_answer_by_the_image_and_count_its_tokens(client: Any) -> None:
    first, other, again = (asked(client, seed) for seed in (1, 2, 1))
    assert first.choices[0].message.content != other.choices[0].message.content
    assert again.choices[0].message.content == first.choices[0].message.content
    assert first.usage.prompt_tokens > 30
    assert again.usage.prompt_tokens_details.cached_tokens > 16


def test_many_clients_at_once_get_what_each_gets_alone(client: Any) -> None:
    def answer(seed: int) -> str:
        if seed % 3 == 2:
            messages: Any = [{"role": "user", "content": f"Say {seed}"}]
            made = client.chat.completions.create(model="see", messages=messages, max_tokens=20, temperature=0)
        else:
            made = asked(client, 10 + seed)
        return str(made.choices[0].message.content)

    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(answer, range(12)))
    assert together == [answer(seed) for seed in range(12)]
    assert len(set(together)) > 6


def test_responses_remember_the_image_of_the_turn_before(client: Any) -> None:
    def respond(seed: int) -> Any:
        content = [{"type": "input_image", "image_url": url_of(seed), "detail": "low"}]
        said = client.responses.create(
            model="see", input=[{"role": "user", "content": content}], max_output_tokens=16, temperature=0
        )
        return client.responses.create(
            model="see", input="And?", previous_response_id=said.id, max_output_tokens=16, temperature=0
        )

    assert respond(1).output_text != respond(2).output_text


def test_a_file_that_is_no_image_is_a_400_that_names_its_place(client: Any) -> None:
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="see", messages=[{"role": "user", "content": broken}])
    assert caught.value.param == "messages.0.content.0.image_url.url"
    assert "no image that can be read" in caught.value.message
