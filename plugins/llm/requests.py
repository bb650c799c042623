"""Turns validated bodies into the runtime's inputs."""

from __future__ import annotations

from sixfold.plugins.llm.generation import ChatInput, ChatMessage, CompletionInput, SamplingParams
from sixfold.plugins.llm.schema import ChatBody, CompletionBody, GenerationBody, Message

_COMPLETION_DEFAULT_TOKENS = 16
"""What OpenAI's reference says of ``max_tokens`` of ``/v1/completions``."""


def chat_input(body: ChatBody) -> ChatInput:
    """The input of a chat request that `refusals.check_chat` let pass."""
    num_top = None
    if body.logprobs:
        num_top = body.top_logprobs or 0
    return ChatInput(
        messages=tuple(_chat_message(message) for message in body.messages),
        params=_sampling_params(body, body.max_completion_tokens or body.max_tokens, num_top),
        num_choices=body.n,
        stream=bool(body.stream),
        template_kwargs=body.chat_template_kwargs or {},
        model_name=body.model,
    )


def completion_input(body: CompletionBody) -> CompletionInput:
    """The input of a completion request that `refusals.check_completion` let pass."""
    max_tokens = _COMPLETION_DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return CompletionInput(
        prompts=_prompts(body),
        params=_sampling_params(body, max_tokens, body.logprobs),
        num_choices=body.n,
        stream=bool(body.stream),
        echo=bool(body.echo),
        model_name=body.model,
    )


def _prompts(body: CompletionBody) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(body.prompt, str):
        return (body.prompt,)
    token_ids = tuple(item for item in body.prompt if isinstance(item, int))
    if token_ids:
        return (token_ids,)
    return tuple(item if isinstance(item, str) else tuple(item) for item in body.prompt if not isinstance(item, int))


def _chat_message(message: Message) -> ChatMessage:
    # Templates know no "developer": it is OpenAI's newer name for the system's role.
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text or "" for part in content or ())
    return ChatMessage(role=role, content=content, name=message.name)


def _sampling_params(body: GenerationBody, max_tokens: int | None, num_top_logprobs: int | None) -> SamplingParams:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        seed=body.seed,
        stop=stop,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        num_top_logprobs=num_top_logprobs,
    )
