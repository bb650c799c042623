"""The clients that `tests/clients/` runs: their pins, and what each is asked. docs/clients.md shows the same to a reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.clients import judges

Judge = Callable[[Any], None]
_JUDGES: Mapping[str, Judge] = {
    "chat": judges.knows_paris,
    "stream": judges.knows_paris,
    "tools": judges.calls_for_weather,
    "form": judges.is_person,
    "responses": judges.knows_paris,
    "embed": judges.are_meals_and_an_engine,
    "rerank": judges.puts_penicillin_first,
    "speak_and_hear": judges.heard_the_sentence,
    "hear_live": judges.heard_the_sentence,
    "draw": judges.is_red_circle,
    "film": judges.is_clip,
}
CELLS = tuple(_JUDGES)
"""In the order of the page's columns."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Client:
    """One row of the page.

    Attributes:
        name: As the page has it.
        pins: What is installed for it, each with its version.
        script: In `scripts/`; prints what it got for each of ``cells``.
        cells: What it is asked.
        own_judges: For answers that only this client gives in such a form.
    """

    name: str
    pins: tuple[str, ...]
    script: str
    cells: tuple[str, ...]
    own_judges: Mapping[str, Judge] = field(default_factory=dict)

    def judge(self, cell: str, found: Any) -> None:
        """Raises AssertionError if what it got for a cell is wrong."""
        self.own_judges.get(cell, _JUDGES[cell])(found)


CLIENTS = (
    Client(
        name="openai (npm)",
        pins=("openai@6.49.0",),
        script="with_openai.mjs",
        cells=("chat", "stream", "tools", "form", "responses", "embed", "speak_and_hear", "draw", "film"),
    ),
    Client(
        name="ai with @ai-sdk/openai-compatible (npm)",
        pins=("ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92"),
        script="with_ai.mjs",
        cells=("chat", "stream", "tools", "form", "embed", "draw"),
    ),
    Client(
        name="litellm",
        pins=("litellm==1.110.2",),
        script="with_litellm.py",
        cells=("chat", "stream", "tools", "form", "responses", "embed", "rerank", "speak_and_hear", "draw", "film"),
    ),
    Client(
        name="LlamaIndex (openai-like; cohere-rerank and jinaai-rerank)",
        pins=(
            "llama-index-llms-openai-like==0.8.1",
            "llama-index-embeddings-openai-like==0.4.0",
            "llama-index-postprocessor-cohere-rerank==0.10.0",
            "llama-index-postprocessor-jinaai-rerank==0.6.0",
        ),
        script="with_llama_index.py",
        cells=("chat", "stream", "tools", "form", "embed", "rerank"),
    ),
    Client(
        name="openai-agents",
        pins=("openai-agents==0.24.0",),
        script="with_openai_agents.py",
        cells=("chat", "stream", "tools", "form", "responses"),
        own_judges={"responses": judges.chats_calls_and_fills},
    ),
    Client(
        name="LiveKit Agents (livekit-plugins-openai)",
        pins=("livekit-agents==1.8.9", "livekit-plugins-openai==1.8.9"),
        script="with_livekit.py",
        cells=("stream", "tools", "form", "speak_and_hear", "hear_live"),
    ),
    Client(
        name="Pipecat (pipecat-ai)",
        pins=("pipecat-ai==1.14.0",),
        script="with_pipecat.py",
        cells=("chat", "stream", "tools", "form", "speak_and_hear", "hear_live"),
    ),
    Client(
        name="huggingface-hub (InferenceClient)",
        pins=("huggingface-hub==2.4.0",),
        script="with_huggingface_hub.py",
        cells=("chat", "stream", "tools", "form"),
    ),
    Client(
        name="instructor",
        pins=("instructor==1.17.0",),
        script="with_instructor.py",
        cells=("tools", "form"),
        own_judges={"tools": judges.is_person},
    ),
    Client(
        name="baseten-performance-client",
        pins=("baseten-performance-client==0.1.16",),
        script="with_baseten.py",
        cells=("embed",),
    ),
)
