"""Readers of text: grammars that clients bring, answers in which calls are looked for, and what is to be spoken."""

from __future__ import annotations

import json
from functools import cache

from sixfold.plugins.llm.answer_parser import AnswerParser, ParsedAnswer, ParserChoice
from sixfold.plugins.llm.call_reader import CallReader
from sixfold.plugins.llm.generation import GrammarKind, GrammarSpec
from sixfold.plugins.llm.grammar import GrammarCompiler
from sixfold.plugins.llm.grammar_text import answer_grammar, whole_grammar
from sixfold.plugins.llm.refusals import check_arguments
from sixfold.plugins.llm.stop import StopMatcher
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.tool_formats import TOOL_FORMATS, detect_tool_format
from sixfold.plugins.tts.english.g2p import EnglishG2P
from sixfold.plugins.tts.english.normalization import spell_out
from sixfold.plugins.tts.sentences import split_at, split_sentences
from tests.fuzz.target import Target, check, text_of
from tests.plugins.llm.conftest import EOS_ID, VOCAB_SIZE, byte_tokenizer

_KINDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "grammar", "choice")


@cache
def _compiler() -> GrammarCompiler:
    return GrammarCompiler(TextCodec(byte_tokenizer()), vocab_size=VOCAB_SIZE, eos_ids=(EOS_ID,))


def _grammar(data: bytes) -> None:
    kind = _KINDS[data[0] % len(_KINDS)] if data else "regex"
    text = text_of(data[1:])
    if kind == "choice":  # the schema of bodies takes lists of texts only
        text = json.dumps(text.split("|"))
    spec = GrammarSpec(kind=kind, text=text, param="structured_outputs")
    whole = whole_grammar([answer_grammar(spec)], thinks=False, opens_in_reasoning=False, literal=json.dumps)
    grammar = _compiler().compile(whole, param="structured_outputs")
    for _ in range(8):
        forced = grammar.forced()
        if not forced or grammar.is_complete or grammar.failure is not None:
            return
        grammar.accept(forced[0], 100)


def _answer(data: bytes) -> None:
    text = text_of(data)
    formats = [None, *TOOL_FORMATS.values()]
    for format in formats:
        choice = ParserChoice(tool_format=format, tool_names=("get_weather", "f"), thinks=bool(len(data) % 2))
        whole = _parsed(choice, [text])
        letters = _parsed(choice, list(text))
        check(
            whole.text == letters.text and whole.reasoning == letters.reasoning, "an answer reads differently in pieces"
        )
        calls = [[(call.name, call.arguments) for call in answer.calls] for answer in (whole, letters)]
        check(calls[0] == calls[1], "calls read differently in pieces")


def _parsed(choice: ParserChoice, pieces: list[str]) -> ParsedAnswer:
    parser: AnswerParser = choice.parser(opens_in_reasoning=False)
    parts = [part for piece in pieces for part in parser.push(piece)]
    return ParsedAnswer.of([*parts, *parser.flush()])


def _call(data: bytes) -> None:
    text = text_of(data)
    reader = CallReader(("f",))
    rest = reader.push(text)
    check(len(rest) <= len(text), "more is given back than was read")
    reader.take_arguments()


def _stops(data: bytes) -> None:
    stops, _, text = text_of(data).partition("\n")
    wanted = [stop for stop in stops.split("|") if stop][:4]
    matcher = StopMatcher(wanted)
    sent = ""
    for char in text:
        part, is_stopped = matcher.push(char)
        sent += part
        if is_stopped:
            check(not any(stop in sent for stop in wanted), "a stop string is sent")
            return
    check(text.startswith(sent), "an answer is sent that was not written")


def _arguments(data: bytes) -> None:
    check_arguments(text_of(data), "messages.0.tool_calls.0.function.arguments")


def _template(data: bytes) -> None:
    detect_tool_format(text_of(data))


@cache
def _g2p() -> EnglishG2P:
    return EnglishG2P()


def _speech(data: bytes) -> None:
    for sentence in split_sentences(text_of(data)):
        spoken = spell_out(sentence)
        check(not any(char.isdigit() and char.isascii() for char in spoken), "a figure is left")
        for part in split_at(_g2p().phonemes(spoken), 400):
            check(0 < len(part) <= 400, "a part is longer than was asked for")


def _schema(**schema: object) -> bytes:
    return b"\0" + json.dumps(schema).encode()


_BIG_REGEX = b"\1" + b"(a{1,1000}b{1,1000}){1,1000}"
_CALL = b'<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'

TEXT_TARGETS = (
    Target(
        name="text.grammar",
        read=_grammar,
        seeds=(
            _schema(type="object", properties={"a": {"type": "string", "pattern": "^a+$"}}, required=["a"]),
            _schema(
                anyOf=[{"$ref": "#/$defs/x"}], **{"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}}
            ),
            _schema(type="integer", minimum=-5, maximum=10**400),
            b"\1[a-z]+@(example|test)\\.org",
            b"\1(?=a)b(?P<x>c)\\1",
            b'\2start: "a" | b\nb: /x+/',
            b'\2root ::= "a" root | "b"',
            b"\3yes|no|",
            _BIG_REGEX,
            b"\0" + b'{"items":' * 300 + b"{}" + b"}" * 300,
        ),
        words=(
            b'"type":"',
            b'"pattern":"',
            b'"$ref":"#',
            b'"minLength":',
            b"{1,",
            b"(?:",
            b"[^",
            b"\\p{L}",
            b"start: ",
            b"root ::= ",
            b"%json {",
        ),
        budget_s=10.0,
    ),
    Target(
        name="text.answer",
        read=_answer,
        seeds=(
            _CALL,
            b"<think>why</think>\n" + _CALL + b" and text",
            b'[TOOL_CALLS][{"name": "f", "arguments": {"a": [1, {"b": "]"}]}}]',
            b'[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"a": "\\""}',
            b'<|python_tag|>{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"x": 1}}',
        ),
        broke=(
            b"[TOOL_CALLS]f|ARGS]{}[TOOL_CALLS]f[ARGS]{}",
            b"[TOOL_CALLS] f [ARGS] {}",
            b"[TOOL_CALLS]f [CALL_ID]a[ARGS]{}",
        ),
        words=(
            b"<tool_call>",
            b"</tool_call>",
            b"[TOOL_CALLS]",
            b"[ARGS]",
            b"<|python_tag|>",
            b"<think>",
            b"</think>",
            b'"name": "f"',
            b'"arguments": {',
            b'\\"',
        ),
        max_bytes=512,
    ),
    Target(
        name="text.call",
        read=_call,
        refuses=(),
        seeds=(b'{"name": "f", "arguments": {"a": "\\u0041"}}', b'{"arguments": {}, "name": "f"} x'),
        words=(b'"name":', b'"arguments":', b"\\u", b"}}"),
    ),
    Target(
        name="text.stop", read=_stops, refuses=(), seeds=(b"aab|b\naaab", b"\nx", b"abab|ba\nababab"), max_bytes=256
    ),
    Target(
        name="text.arguments", read=_arguments, seeds=(b'{"a": 1}', b"[]", b"[" * 2000), words=(b"\\ud800", b"1e999")
    ),
    Target(
        name="text.template",
        read=_template,
        refuses=(),
        seeds=(b"{% if tools %}[TOOL_CALLS]", b"tools <tool_call>"),
        words=(b"tools", b"[ARGS]"),
    ),
    Target(
        name="text.speech",
        read=_speech,
        refuses=(),
        seeds=(
            b"On 3/4/2024 at 5:30 p.m. Dr. Smith paid $1,234.56 (2.5 mg/kg) v1.2.3.",
            b"Call +1 555-123-4567, room 101, 1990s, 2nd, 3 1/2, 10-20, 5e9, 007, 1,2,3",
            "½ €5 naïve — “quote” 東京 😀 ٣٤ ²".encode(),
            b"9" * 400,
            b"," * 500 + b"1" + b".1" * 200,
            b"A.B.C. " * 60,
        ),
        words=(
            b"$",
            b" million",
            b"1,000",
            b"1/2",
            b"Jan. ",
            b"mg/kg",
            b"0x",
            b"a.m.",
            "\u0663".encode(),
            "\u00b2".encode(),
            b"-",
        ),
        max_bytes=1024,
        budget_s=10.0,
    ),
)
"""Text."""
