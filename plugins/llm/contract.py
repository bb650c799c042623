"""What a family of language models takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``chat`` gets a `ChatInput`, ``complete`` a `CompletionInput`. Where its ``stream`` is set, each step gives a `TextDelta` for
each choice, the last of a choice with its ``finish_reason``; without it deltas are dropped. All end with a `Generation`, whose
usage counts ``prompt_tokens`` and ``completion_tokens``. `ModelInfo.details` may hold ``images``, ``tool_call_parser`` and
``reasoning_parser``. What a model can't honour it must refuse: `plain_prompt` does that for models of plain text.
"""

from __future__ import annotations

from collections.abc import Collection

from sixfold.core.errors import InvalidRequest
from sixfold.core.refusal import refuse_others
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    Choice,
    CompletionInput,
    Generation,
    SamplingParams,
    TextDelta,
)

__all__ = [
    "ChatInput",
    "ChatMessage",
    "Choice",
    "CompletionInput",
    "Generation",
    "SamplingParams",
    "TextDelta",
    "plain_prompt",
]

_PARAMS = {
    "num_choices": "n",
    "must_call": "tool_choice",
    "template_kwargs": "chat_template_kwargs",
    "num_top_logprobs": "logprobs",
    "kv_transfer": "kv_transfer_params",
}


def plain_prompt(wanted: ChatInput | CompletionInput, *, honoured: Collection[str] = ("max_tokens",)) -> str:
    """The text to continue, of a request to a model that makes one answer, without tools, images or adapters.

    Args:
        wanted: The request.
        honoured: Fields of `SamplingParams` that the model honours.

    Raises:
        InvalidRequest: It asks for anything else.
    """
    refuse_others(wanted, {"messages", "prompts", "params", "stream", "allow_parallel_calls"}, params=_PARAMS)
    refuse_others(wanted.params, honoured, params=_PARAMS)
    if isinstance(wanted, ChatInput):
        if any(message.images for message in wanted.messages):
            raise InvalidRequest("This model reads no images.", param="messages")
        return "\n".join(message.content for message in wanted.messages)
    prompt = wanted.prompts[0] if len(wanted.prompts) == 1 else ()
    if not isinstance(prompt, str):
        raise InvalidRequest("This model takes one text as its prompt.", param="prompt")
    return prompt
