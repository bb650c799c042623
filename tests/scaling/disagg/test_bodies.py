"""Which requests are split, and what their two halves say."""

from __future__ import annotations

from typing import Any

import pytest

from sixfold.scaling.disagg.bodies import can_split, decode_body, handle_of, prefill_body

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body", "may"),
    [
        (CHAT, {"messages": MESSAGES}, True),
        (CHAT, {"messages": MESSAGES, "stream": True, "n": 3}, True),
        (CHAT, {"messages": "hello"}, False),
        (CHAT, {"messages": MESSAGES, "kv_transfer_params": {"do_remote_decode": True}}, False),
        (COMPLETION, {"prompt": "hello"}, True),
        (COMPLETION, {"prompt": ["hello"]}, True),
        (COMPLETION, {"prompt": [1, 2, 3]}, True),
        (COMPLETION, {"prompt": ["one", "two"]}, False),
        (COMPLETION, {"prompt": [[1], [2]]}, False),
        (COMPLETION, {"prompt": "hello", "echo": True}, False),
        (COMPLETION, {}, False),
        ("/v1/responses", {"input": "hello"}, False),
        ("/v1/embeddings", {"input": "hello"}, False),
    ],
)
def test_requests_of_one_prompt_are_split(path: str, body: dict[str, Any], may: bool) -> None:
    assert can_split(path, body) is may


def test_the_half_that_computes_keeps_what_shapes_the_prompt() -> None:
    body = {"model": "m", "messages": MESSAGES, "tools": [{"type": "function"}], "cache_salt": "s"}
    answer = {"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 9, "seed": 1, "n": 2}
    assert prefill_body(body | answer | {"max_tokens": 9, "logprobs": True, "top_logprobs": 2, "min_tokens": 4}) == (
        body | {"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
    )


def test_the_half_that_answers_is_the_clients_request_with_the_handle() -> None:
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    given = handle_of({"kv_transfer_params": {"handle": {"address": "shm:x"}, "do_remote_prefill": True}})
    assert decode_body(body, given) == body | {
        "kv_transfer_params": {"handle": {"address": "shm:x"}, "do_remote_prefill": True}
    }
    assert decode_body(body, None) == body


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"kv_transfer_params": None}, {"kv_transfer_params": {"handle": None}}]
)
def test_an_answer_without_a_handle_gives_none(answer: Any) -> None:
    assert handle_of(answer) is None
