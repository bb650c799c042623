"""Writes what a request wants of its answer in llguidance's notation.

JSON may have one space wherever it may have any whitespace: small models that may write more sometimes never stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from llguidance.gbnf_to_lark import any_to_lark

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import GrammarSpec, ToolSpec
from sixfold.plugins.llm.reasoning import CLOSES, OPENS
from sixfold.plugins.llm.tool_formats import ToolFormat

Literalize = Callable[[str], str]
"""Gives a marker as the grammar must name it: a quoted text, or the id of a special token."""

_MAX_PARALLEL_CALLS = 16
_SPACED = {"whitespace_pattern": "[ ]?"}
_COMPACT = {"whitespace_flexible": False}

# The library's converter is typed in part.
_TO_LARK = cast("Callable[[str], str]", any_to_lark)


def quoted(text: str) -> str:
    """A text as a literal of a grammar."""
    return json.dumps(text, ensure_ascii=False)


def answer_grammar(spec: GrammarSpec) -> dict[str, Any]:
    """The grammar of an answer, as a member of llguidance's list.

    Raises:
        InvalidRequest: Its text can't be read.
    """
    if spec.kind in ("json_object", "json_schema"):
        schema = {"type": "object"} if spec.kind == "json_object" else _read_schema(spec)
        return {"json_schema": schema | {"x-guidance": _COMPACT if spec.is_compact else _SPACED}}
    if spec.kind == "regex":
        return {"lark_grammar": f"start: /{_escape_slashes(spec.text)}/"}
    if spec.kind == "choice":
        return {"lark_grammar": "start: " + " | ".join(map(quoted, json.loads(spec.text)))}
    try:
        return {"lark_grammar": _TO_LARK(spec.text)}
    except Exception as error:  # the converter raises whatever its parser stumbles over
        raise InvalidRequest(f"{spec.param!r} is no grammar: {str(error)[:300]}", param=spec.param) from error


def tool_grammar(
    format: ToolFormat, tools: Sequence[ToolSpec], *, is_parallel: bool, literal: Literalize, follows: bool = False
) -> dict[str, Any]:
    """The grammar of an answer that is nothing but calls, in the way that the model was taught.

    Args:
        format: That way.
        tools: Those that may be called; at least one.
        is_parallel: Whether there may be several calls.
        literal: Names the markers.
        follows: Whether it begins within an answer, with the token in which the first call begins: the end of free text
            may be in it.
    """
    opens = literal(format.opens) if format.opens else ""
    first, lead = opens, ""
    if follows and not opens:
        first, lead = "lead ", f"lead: /[ \\t\\r\\n]*/ {literal(format.optional_opens)}?"
    elif follows and not opens.startswith("<"):  # no token of its own
        first, lead = "lead", f"lead[lazy]: /(?s:.*)/ {opens}"
    more = f"{{0,{_MAX_PARALLEL_CALLS - 1}}}"
    if format.is_list:
        rest = f' (", " call){more}' if is_parallel else ""
        rules = [f'start: {first} "[" call{rest} "]"', "call: " + _alternatives(tools)]
    elif format.separator:
        rest = f" ({opens} call){more}" if is_parallel else ""
        rules = [f"start: {first} call{rest}", "call: " + _alternatives(tools)]
    elif format.opens:
        rest = f' ("\\n" call){more}' if is_parallel else ""
        body = f'body: "\\n" ({_alternatives(tools)}) "\\n" {literal(format.closes)}'
        rules = [f"start: {first} body{rest}", f"call: {opens} body", body]
    else:
        rules = [f"start: {first}({_alternatives(tools)})"]
    rules += [lead] if lead else []
    for place, tool in enumerate(tools):
        arguments = f"%json {json.dumps(_arguments_schema(tool))}"
        if format.separator:
            rules.append(f"call_{place}: {quoted(tool.name)} {literal(format.separator)} {arguments}")
        else:
            head = quoted(f'{{"name": {quoted(tool.name)}, "{format.arguments_key}": ')
            rules.append(f'call_{place}: {head} {arguments} "}}"')
    return {"lark_grammar": "\n".join(rules) + "\n"}


def whole_grammar(
    answers: Sequence[dict[str, Any]], *, thinks: bool, opens_in_reasoning: bool, literal: Literalize
) -> str:
    """The grammar's final text: one of the answers, on some models after free reasoning.

    Args:
        answers: From `answer_grammar` and `tool_grammar`; at least one.
        thinks: Whether the model marks its reasoning.
        opens_in_reasoning: Whether the prompt ended within it.
        literal: Names the markers.
    """
    if len(answers) == 1 and not thinks:
        return json.dumps({"grammars": list(answers)})
    named = [{"name": f"answer_{place}"} | answer for place, answer in enumerate(answers)]
    answer = " | ".join(f"@{one['name']}" for one in named)
    lark = f"start: {'reasoning ' if thinks else ''}({answer})\n"
    if thinks:
        closes = literal(CLOSES)
        if closes.startswith("<"):  # a special token
            lark += f"think: /(?s:.*)/ {closes}\n"
        else:
            lark += f"think[suffix={closes}]: /(?s:.*)/\n"
        begin = "think" if opens_in_reasoning else f"({literal(OPENS)} think)?"
        lark += f"reasoning: {begin} gap\ngap: /\\n{{0,2}}/\n"
    return json.dumps({"grammars": [{"lark_grammar": lark}, *named]})


def _alternatives(tools: Sequence[ToolSpec]) -> str:
    return " | ".join(f"call_{place}" for place in range(len(tools)))


def _arguments_schema(tool: ToolSpec) -> dict[str, Any]:
    schema = {"type": "object"} | (tool.parameters or {})
    # What a tool that is not strict asks beyond what can be enforced is a hint to the model, as in OpenAI's service.
    hints = {} if tool.is_strict else {"lenient": True, "coerce_one_of": True}
    return schema | {"x-guidance": _SPACED | hints}


def _read_schema(spec: GrammarSpec) -> dict[str, Any]:
    try:
        schema: Any = json.loads(spec.text)
        json.dumps(schema)  # what is nested too deeply to be written again is told here
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{spec.param!r} can't be read as JSON: {error}.", param=spec.param) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{spec.param!r} must be a JSON object.", param=spec.param)
    return cast("dict[str, Any]", schema)


def _escape_slashes(pattern: str) -> str:
    """A pattern between slashes; one that is already escaped stays as it is."""
    parts: list[str] = []
    escaped = False
    for char in pattern:
        parts.append({"/": "\\/", "\n": "\\n"}.get(char, char) if not escaped else char)
        escaped = char == "\\" and not escaped
    return "".join(parts)
