"""Writes a conversation as one model reads it, tools included, and says what form its answer must have."""

from __future__ import annotations

import json
from typing import Any

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.answer_style import AnswerStyle
from sixfold.plugins.llm.call_watch import CallWatch
from sixfold.plugins.llm.generation import ChatInput, ChatMessage, CompletionInput, ImagePart
from sixfold.plugins.llm.grammar import Grammar, GrammarCompiler
from sixfold.plugins.llm.grammar_text import answer_grammar, quoted, tool_grammar, whole_grammar
from sixfold.plugins.llm.lazy_grammar import LazyGrammar
from sixfold.plugins.llm.reasoning import CLOSES, OPENS
from sixfold.plugins.llm.refusals import text_only
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.tool_prompt import tool_object, with_tools_in_words


class ConversationWriter:
    """Of one model. Called by several pool threads at once; holds no state that changes.

    Args:
        codec: The model's tokenizer.
        style: How the model marks calls and reasoning.
        grammars: Of its vocabulary.
        image_token: What stands for an image in the template; None if the model reads text only.
    """

    def __init__(
        self, codec: TextCodec, style: AnswerStyle, grammars: GrammarCompiler, *, image_token: str | None = None
    ) -> None:
        self._codec = codec
        self._style = style
        self._grammars = grammars
        self._image_token = image_token
        self._takes_parts = _takes_parts(codec, prefers_text=image_token is None)

    @classmethod
    def of_model(
        cls,
        codec: TextCodec,
        *,
        tool_call_parser: str,
        reasoning_parser: str,
        vocab_size: int,
        eos_ids: tuple[int, ...],
        image_token: str | None = None,
    ) -> ConversationWriter:
        """That of a model, whichever family runs it.

        Args:
            codec: The model's tokenizer.
            tool_call_parser: The option of this name.
            reasoning_parser: The option of this name.
            vocab_size: Rows of the output head.
            eos_ids: The model's end tokens.
            image_token: What stands for an image in the template; None if the model reads text only.
        """
        style = AnswerStyle.of(codec.template, tool_call_parser=tool_call_parser, reasoning_parser=reasoning_parser)
        grammars = GrammarCompiler(codec, vocab_size=vocab_size, eos_ids=eos_ids)
        return cls(codec, style, grammars, image_token=image_token)

    @property
    def details(self) -> dict[str, str]:
        """See `AnswerStyle.details`."""
        return self._style.details

    @property
    def thinks(self) -> bool:
        """Whether the model marks its reasoning."""
        return self._style.reasoning == "think"

    def render(self, chat: ChatInput) -> str:
        """The prompt's text.

        Raises:
            InvalidRequest: The template rejects the conversation, or the model can't be told about tools or shown images.
        """
        self._check_images(chat)
        if chat.tools and self._style.tool_format is None:
            raise InvalidRequest(
                "This model is served with tool_call_parser: none. Leave out the tools.",
                param="tools",
                code="unsupported_parameter",
            )
        if self._style.is_taught_tools:
            turns = [self._turn(message) for message in chat.messages]
            return self._codec.render_chat(turns, chat.template_kwargs, [tool_object(tool) for tool in chat.tools])
        messages = with_tools_in_words(chat.messages, chat.tools)
        return self._codec.render_chat([self._turn(message) for message in messages], chat.template_kwargs)

    def kept_markers(self, request_input: ChatInput | CompletionInput) -> tuple[str, ...]:
        """Special tokens that must stay in the answer's text for its parser."""
        if isinstance(request_input, CompletionInput):
            return ()
        thinking = (OPENS, CLOSES) if self.thinks else ()
        format = self._style.tool_format
        return thinking + (format.markers if format is not None and request_input.tools else ())

    def forms(self, request_input: ChatInput | CompletionInput) -> list[dict[str, Any]]:
        """The forms that an answer may have, as members of llguidance's list; none if it is free.

        Raises:
            InvalidRequest: A form can't be read.
        """
        spec = request_input.params.grammar
        chat = request_input if isinstance(request_input, ChatInput) else None
        answers: list[dict[str, Any]] = []
        if spec is not None and not (chat is not None and chat.must_call):
            answers.append(answer_grammar(spec))
        # A model that may call, or else must answer in a form, may do either; a call is held to its schema then.
        if chat is not None and chat.tools and (chat.must_call or answers) and self._style.tool_format is not None:
            tools = [tool for tool in chat.tools if chat.must_call_name in (None, tool.name)]
            is_parallel = chat.allow_parallel_calls
            answers.append(tool_grammar(self._style.tool_format, tools, is_parallel=is_parallel, literal=self._literal))
        return answers

    def grammar(self, request_input: ChatInput | CompletionInput, *, opens_in_reasoning: bool) -> Grammar | None:
        """What the answer must look like; None if it is free.

        Raises:
            InvalidRequest: It can't be enforced.
        """
        answers = self.forms(request_input)
        if not answers:
            return self._call_grammar(request_input, opens_in_reasoning=opens_in_reasoning)
        spec = request_input.params.grammar
        text = whole_grammar(
            answers,
            thinks=isinstance(request_input, ChatInput) and self.thinks,
            opens_in_reasoning=opens_in_reasoning,
            literal=self._literal,
        )
        return self._grammars.compile(text, param="tools" if spec is None else spec.param)

    def _call_grammar(
        self, request_input: ChatInput | CompletionInput, *, opens_in_reasoning: bool
    ) -> LazyGrammar | None:
        """What calls must look like in an answer that is free until it calls; None if it can't call.

        Tools that are not strict are served where their schemas, or those of their neighbours, can't be enforced.

        Raises:
            InvalidRequest: One of the tools is strict, and can't be.
        """
        format = self._style.tool_format
        if not isinstance(request_input, ChatInput) or not request_input.tools or format is None:
            return None
        is_parallel = request_input.allow_parallel_calls
        calls = tool_grammar(format, request_input.tools, is_parallel=is_parallel, literal=self._literal, follows=True)
        try:
            matchers = self._grammars.matchers(json.dumps({"grammars": [calls]}), param="tools")
        except InvalidRequest:
            if any(tool.is_strict for tool in request_input.tools):
                raise
            return None
        watch = CallWatch(
            format, self._codec.known_bytes, thinks=self.thinks, opens_in_reasoning=self.thinks and opens_in_reasoning
        )
        return LazyGrammar(matchers, watch)

    def _check_images(self, chat: ChatInput) -> None:
        images = [image for message in chat.messages for image in message.images]
        if self._image_token is None:
            if images:
                raise text_only(images[0].param)
        elif any(self._image_token in message.content for message in chat.messages):
            raise InvalidRequest(
                f"The text holds {self._image_token!r}, which stands for an image in this model's prompts. Take it out.",
                param="messages",
            )

    def _turn(self, message: ChatMessage) -> dict[str, Any]:
        parts = message.parts or ((message.content,) if message.content else ())
        if self._takes_parts:
            return _turn(message, [_template_part(part) for part in parts])
        return _turn(message, "".join(part if isinstance(part, str) else self._image_token or "" for part in parts))

    def _literal(self, marker: str) -> str:
        token_id = self._codec.special_token_id(marker)
        return quoted(marker) if token_id is None else f"<[{token_id}]>"


def _takes_parts(codec: TextCodec, *, prefers_text: bool) -> bool:
    """Whether a turn's content is a list of parts for the template; older ones take text with marks in it.

    Args:
        codec: Has the template.
        prefers_text: Whether text is what it gets, should it take both.
    """
    probe = "probe"
    if not codec.has_chat_template or (prefers_text and probe in _rendered(codec, probe)):
        return False
    text = _rendered(codec, [{"type": "text", "text": probe}])
    return probe in text and "'type'" not in text


def _rendered(codec: TextCodec, content: object) -> str:
    try:
        return codec.render_chat([{"role": "user", "content": content}], {})
    except InvalidRequest:
        return ""


def _template_part(part: str | ImagePart) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _turn(message: ChatMessage, content: str | list[dict[str, str]]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        # Templates write the arguments as JSON themselves, so they get the object.
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return turn
