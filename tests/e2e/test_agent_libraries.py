"""Chats, streams and vectors as the libraries in which agents are written ask for them; calls and forms: test_structured.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import AsyncOpenAI

pytestmark = pytest.mark.models

QUESTION = "Name the capital of France."


@pytest.fixture
def langchain_settings(demo_server: Any) -> dict[str, Any]:
    return {"base_url": f"{demo_server.url}/v1", "api_key": "none", "max_retries": 0}


@pytest.fixture
async def pydantic_agent(demo_server: Any) -> AsyncIterator[Any]:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, timeout=120.0) as client:
        model = OpenAIChatModel("chat", provider=OpenAIProvider(openai_client=client))
        yield Agent(model, model_settings={"temperature": 0, "max_tokens": 40})


def test_langchain_chats_and_streams_the_same(langchain_settings: dict[str, Any]) -> None:
    from langchain_openai import ChatOpenAI

    with httpx2.Client(timeout=120.0) as http:
        asked: dict[str, Any] = {"model": "chat", "temperature": 0, "max_tokens": 40, "http_client": http}
        model: Any = ChatOpenAI(**asked, **langchain_settings)
        whole = model.invoke(QUESTION).content
        assert "Paris" in whole
        assert "".join(chunk.content for chunk in model.stream(QUESTION)) == whole


def test_langchain_embeds_texts_and_queries_alike(langchain_settings: dict[str, Any]) -> None:
    from langchain_openai import OpenAIEmbeddings

    with httpx2.Client(timeout=120.0) as http:
        # Lengths are the server's to check: by itself the client would count tokens of one of OpenAI's models.
        model: Any = OpenAIEmbeddings(
            model="embed", check_embedding_ctx_length=False, http_client=http, **langchain_settings
        )
        texts = np.array(model.embed_documents(["a meal", "an engine"]))
        query = np.array(model.embed_query("a dinner"))
    assert texts.shape == (2, 384)
    assert query @ texts[0] > query @ texts[1] + 0.2


async def test_pydantic_ai_chats_and_streams_the_same(pydantic_agent: Any) -> None:
    whole = (await pydantic_agent.run(QUESTION)).output
    assert "Paris" in whole
    async with pydantic_agent.run_stream(QUESTION) as running:
        assert "".join([piece async for piece in running.stream_text(delta=True, debounce_by=None)]) == whole
