"""From the form that an answer must have to vLLM's structured outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.generation import ChatInput, CompletionInput


def structured_outputs(
    conversations: ConversationWriter, request_input: ChatInput | CompletionInput
) -> Mapping[str, str] | None:
    """The keyword arguments of vLLM's ``StructuredOutputsParams``, for its backend ``guidance``; None for free text.

    That backend reads the same notation with the same library as the native runtime, so a form means the same in both.

    Raises:
        InvalidRequest: vLLM takes one form, from an answer's first token on: it can neither choose between calls and another
            form nor wait for the end of reasoning that it is not told about.
    """
    forms = conversations.forms(request_input)
    if not forms:
        return None
    spec = request_input.params.grammar
    if len(forms) > 1:
        raise InvalidRequest(
            "This model can't be held to either calls or a form. Leave out the tools or the form, or set tool_choice to "
            '"required".',
            param="tools",
            code="unsupported_parameter",
        )
    if isinstance(request_input, ChatInput) and conversations.thinks:
        raise InvalidRequest(
            "This model marks its reasoning, and its engine can't hold only what follows to a form. Leave the form out, or "
            "serve the model with reasoning_parser: none.",
            param="tool_choice" if spec is None else spec.param,
            code="unsupported_parameter",
        )
    (form,) = forms
    if "json_schema" in form:
        return {"json": json.dumps(form["json_schema"])}
    return {"grammar": form["lark_grammar"]}
