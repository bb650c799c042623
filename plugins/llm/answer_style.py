"""How a model marks what is not plain text in its answers; for every family of this plugin."""

from __future__ import annotations

from dataclasses import dataclass

from sixfold.plugins.llm.reasoning import ReasoningParserName, detect_reasoning
from sixfold.plugins.llm.tool_formats import HERMES, TOOL_FORMATS, ToolFormat, detect_tool_format


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStyle:
    """How a model marks what is not plain text in its answers.

    Attributes:
        tool_format: How it writes calls; None if they are never looked for.
        is_taught_tools: Whether its own template tells it about tools; otherwise we do, in words.
        reasoning: How it marks reasoning.
    """

    tool_format: ToolFormat | None
    is_taught_tools: bool
    reasoning: ReasoningParserName

    @classmethod
    def of(cls, template: str, *, tool_call_parser: str, reasoning_parser: str) -> AnswerStyle:
        """The style that a template shows, where the model's options don't say.

        Args:
            template: The chat template's text.
            tool_call_parser: The option of this name.
            reasoning_parser: The option of this name.
        """
        taught = detect_tool_format(template)
        thinks = detect_reasoning(template) == "think" if reasoning_parser == "auto" else reasoning_parser == "think"
        if tool_call_parser == "auto":
            return cls(
                tool_format=taught or HERMES,
                is_taught_tools=taught is not None,
                reasoning="think" if thinks else "none",
            )
        return cls(
            tool_format=TOOL_FORMATS.get(tool_call_parser),
            is_taught_tools="tools" in template,  # the option says what we don't recognize
            reasoning="think" if thinks else "none",
        )

    @property
    def details(self) -> dict[str, str]:
        """What `ParserChoice` needs to know of the model, for its `ModelInfo.details`."""
        name = "none" if self.tool_format is None else self.tool_format.name
        return {"tool_call_parser": name, "reasoning_parser": self.reasoning}
