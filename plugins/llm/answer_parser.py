"""Takes a model's answer apart, as it comes: reasoning, text and calls of tools.

Used by the HTTP face for every family of this plugin. Of a model it needs two facts, which its `ModelInfo.details` bring:
``tool_call_parser`` and ``reasoning_parser``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sixfold.plugins.llm.answer_parts import ArgumentsPart, CallStart, Part, ReasoningPart, TextPart
from sixfold.plugins.llm.call_splitter import CallSplitter
from sixfold.plugins.llm.generation import ChatInput, ToolCall
from sixfold.plugins.llm.reasoning_splitter import ReasoningSplitter
from sixfold.plugins.llm.tool_formats import TOOL_FORMATS, ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserChoice:
    """How the answers of one request are taken apart.

    Attributes:
        tool_format: How calls are written; None if the model may not call.
        tool_names: Whom it may call.
        thinks: Whether it marks its reasoning.
    """

    tool_format: ToolFormat | None = None
    tool_names: tuple[str, ...] = ()
    thinks: bool = False

    @classmethod
    def of(cls, details: Mapping[str, str | int | float | bool], chat: ChatInput) -> ParserChoice:
        """What a model's details and the request say."""
        format = TOOL_FORMATS.get(str(details.get("tool_call_parser", "none"))) if chat.tools else None
        return cls(
            tool_format=format,
            tool_names=tuple(tool.name for tool in chat.tools),
            thinks=details.get("reasoning_parser") == "think",
        )

    @property
    def is_plain(self) -> bool:
        """Whether answers are nothing but text."""
        return self.tool_format is None and not self.thinks

    def parser(self, *, opens_in_reasoning: bool) -> AnswerParser:
        """The parser of one answer."""
        reasoning = ReasoningSplitter(opens_in=opens_in_reasoning) if self.thinks else None
        calls = None if self.tool_format is None else CallSplitter(self.tool_format, self.tool_names)
        return AnswerParser(reasoning, calls)


class AnswerParser:
    """One per answer.

    Args:
        reasoning: Of this answer; None if the model marks none.
        calls: Of this answer; None if there can be none.
    """

    def __init__(self, reasoning: ReasoningSplitter | None, calls: CallSplitter | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    def push(self, text: str) -> list[Part]:
        """The parts that became certain."""
        first: Sequence[Part] = [TextPart(text)] if self._reasoning is None else self._reasoning.push(text)
        return self._look_for_calls(first)

    def flush(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        parts = [] if self._reasoning is None else self._look_for_calls(self._reasoning.flush())
        return parts if self._calls is None else parts + self._calls.flush()

    def _look_for_calls(self, first: Sequence[Part]) -> list[Part]:
        if self._calls is None:
            return list(first)
        parts: list[Part] = []
        for part in first:
            parts.extend(self._calls.push(part.text) if isinstance(part, TextPart) else [part])
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAnswer:
    """A whole answer, taken apart."""

    reasoning: str
    text: str
    calls: tuple[ToolCall, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> ParsedAnswer:
        """Joins the pieces."""
        starts = [part for part in parts if isinstance(part, CallStart)]
        pieces = [part for part in parts if isinstance(part, ArgumentsPart)]
        return cls(
            reasoning="".join(part.text for part in parts if isinstance(part, ReasoningPart)),
            text="".join(part.text for part in parts if isinstance(part, TextPart)),
            calls=tuple(
                ToolCall(
                    id=start.id,
                    name=start.name,
                    arguments="".join(piece.text for piece in pieces if piece.index == start.index),
                )
                for start in starts
            ),
        )
