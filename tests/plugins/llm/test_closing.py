"""A form is whole when the limit of tokens cuts it: closed by the shortest text that was found, whatever was said before."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sixfold.plugins.llm.answer_parser import ParsedAnswer, ParserChoice
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.detokenizer import Detokenizer
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    CompletionInput,
    GrammarSpec,
    SamplingParams,
    ToolSpec,
)
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.sampling import SamplingDefaults, resolve_sampling
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.stop import StopMatcher
from sixfold.plugins.llm.text_codec import TextCodec
from tests.plugins.llm.conftest import TEMPLATE, byte_tokenizer
from tests.plugins.llm.schema_strategies import DrawnSchema, schemas

Run = Callable[..., list[Any]]

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["city", "tags"],
    "additionalProperties": False,
}
LONG_MEMBER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string"},
        "much": {
            "type": "object",
            "properties": {name * 9: {"enum": ["first of these", "other"]} for name in "pqrs"},
            "required": [name * 9 for name in "pqrs"],
            "additionalProperties": False,
        },
        "z": {"type": "integer"},
    },
    "required": ["z"],
    "additionalProperties": False,
}
_FAST: Any = PreTrainedTokenizerFast


def merged_tokenizer(*special: str) -> Any:
    """Tokens of several bytes, many of which hold punctuation of JSON; the markers that are given are special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = [
        json.dumps({"city": "Paris", "tags": ["old", "big"], "is_ok": True, "n": [n, -n, n / 7]}) for n in range(90)
    ]
    tokenizer.train_from_iterator(lines, trainer)
    fast: Any = _FAST(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def spaced_tokenizer() -> Any:
    """As SentencePiece makes them: a mark for spaces, and tokens named by their byte for what has no other."""
    letters = [chr(byte) for byte in range(0x21, 0x7F)]
    names = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "\u2581", '":', '"}', "\u2581]"]
    merges = [('"', ":"), ('"', "}"), ("\u2581", "]")]
    model = models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    parts: Any = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    fast: Any = _FAST(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


def lettered_tokenizer() -> Any:
    """As `spaced_tokenizer`, but only ASCII has tokens of its own, and no byte a name: ``é`` is one token, ``ü`` is none."""
    letters = [chr(byte) for byte in range(0x21, 0x7F)]
    names = ["<s>", "</s>", "<unk>", *letters, "\u2581", "é", '":', '"}']
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)}, merges=[('"', ":"), ('"', "}")], unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    parts: Any = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    fast: Any = _FAST(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    return fast


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "merged": merged_tokenizer,
    "spaced": spaced_tokenizer,
}


class Babbler:
    """Stands for a model that says anything its form allows, in the runtime's own sequences.

    Args:
        codec: Its tokenizer.
        tool_call_parser: How it writes calls.
    """

    def __init__(self, codec: TextCodec, tool_call_parser: str = "auto") -> None:
        self.codec = codec
        self.eos_id = codec.eos_id or 0
        self.conversations = ConversationWriter.of_model(
            codec,
            tool_call_parser=tool_call_parser,
            reasoning_parser="auto",
            vocab_size=codec.num_tokens,
            eos_ids=(self.eos_id,),
        )

    def sequence(self, chat: ChatInput, *, opens_in_reasoning: bool = False) -> SequenceState:
        params = chat.params
        decode = self.codec.decode_with(self.conversations.kept_markers(chat))
        return SequenceState(
            choice=0,
            prompt_ids=[5],
            sampling=resolve_sampling(params, SamplingDefaults(), eos_ids=(self.eos_id,), choice=0),
            max_output_tokens=params.max_tokens or 10_000,
            detokenizer=Detokenizer(decode, [5], self.codec.piece),
            stop=StopMatcher(params.stop),
            counts_prompt=True,
            stream=False,
            grammar=self.conversations.grammar(chat, opens_in_reasoning=opens_in_reasoning),
            opens_in_reasoning=opens_in_reasoning,
        )

    def say(self, sequence: SequenceState, seed: int, favourites: Sequence[int] = ()) -> SequenceState:
        chance = random.Random(seed)
        grammar = sequence.grammar
        assert grammar is not None
        words = np.zeros(-(-self.codec.num_tokens // 32), dtype=np.int32)
        while sequence.finish_reason is None:
            grammar.mask_into(words)
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: self.codec.num_tokens]
            allowed = np.flatnonzero(bits).tolist()
            liked = [token for token in favourites if bits[token]]
            sequence.append(chance.choice(liked or allowed), None)
            assert grammar.failure is None
        return sequence

    def num_needed(self, chat: ChatInput) -> int | None:
        """Tokens of the shortest answer that is known when it begins."""
        grammar: Any = self.conversations.grammar(chat, opens_in_reasoning=False)
        ending = grammar._closing._ending
        return None if ending is None else len(ending.tokens)


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def babbler(request: Any) -> Babbler:
    return Babbler(TextCodec(TOKENIZERS[request.param]()))


def asking(schema: object, max_tokens: int, **params: Any) -> ChatInput:
    form = GrammarSpec(kind="json_schema", text=json.dumps(schema))
    fields: dict[str, Any] = {"grammar": form, "max_tokens": max_tokens, "seed": 5} | params
    return ChatInput(
        messages=(ChatMessage(role="user", content="abc"),),
        params=SamplingParams(**fields),
    )


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
@hypothesis.given(drawn=schemas(), max_tokens=st.integers(1, 120), seed=st.integers(0, 9))
def test_any_answer_of_any_length_is_whole_unless_the_shortest_is_longer(
    babbler: Babbler, drawn: DrawnSchema, max_tokens: int, seed: int
) -> None:
    chat = asking(drawn.schema, max_tokens)
    needed = babbler.num_needed(chat)
    assert needed is not None
    sequence = babbler.say(babbler.sequence(chat), seed)
    assert sequence.num_output_tokens <= max_tokens
    if needed <= max_tokens:
        jsonschema.validate(json.loads(sequence.text), drawn.schema)
    else:
        assert sequence.finish_reason == "length"


@pytest.mark.parametrize("max_tokens", range(60, 100, 7))
def test_a_member_that_could_not_be_closed_is_not_begun(babbler: Babbler, max_tokens: int) -> None:
    favourites = babbler.codec.encode('{"much', add_special_tokens=False)
    for seed in range(10):
        sequence = babbler.say(babbler.sequence(asking(LONG_MEMBER, max_tokens)), seed, favourites)
        jsonschema.validate(json.loads(sequence.text), LONG_MEMBER)


def test_with_many_tokens_left_nothing_is_looked_at(babbler: Babbler, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = babbler.sequence(asking(CITY, 5_000))
    monkeypatch.setattr(type(sequence.grammar._closing), "_decide", None)  # type: ignore[union-attr]
    for text in ('{"city"', ':"', *["x"] * 300):
        for token in babbler.codec.encode(text, add_special_tokens=False):
            if sequence.num_output_tokens < 200:
                assert sequence.append(token, None)
    assert sequence.finish_reason is None
    monkeypatch.undo()


def test_a_long_answer_is_closed_as_well(babbler: Babbler) -> None:
    sequence = babbler.sequence(asking(CITY, 1_000))
    babbler.say(sequence, 1, babbler.codec.encode("x", add_special_tokens=False))
    assert sequence.finish_reason == "length"
    assert 900 < sequence.num_output_tokens <= 1_000
    jsonschema.validate(json.loads(sequence.text), CITY)


@pytest.mark.parametrize(
    ("texts", "max_tokens", "said"),
    [
        (("éclair au chocolat", "x"), 40, "éclair au chocolat"),
        (("éclair au chocolat", "x"), 20, "x"),  # the other has no room
        (("éclair", "été"), 20, "éclair|été"),
        (("éa", "ü", "longer than this"), 14, "éa"),  # the shortest can't be said
    ],
)
def test_a_token_whose_bytes_have_no_tokens_closes_nothing_before_its_time(
    texts: Sequence[str], max_tokens: int, said: str
) -> None:
    babbler = Babbler(TextCodec(lettered_tokenizer()))
    schema = {
        "type": "object",
        "properties": {"a": {"enum": list(texts)}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for seed in range(6):
        favourites = babbler.codec.encode("é", add_special_tokens=False)
        sequence = babbler.say(babbler.sequence(asking(schema, max_tokens)), seed, favourites)
        assert re.fullmatch(said, json.loads(sequence.text)["a"])


def test_what_ends_by_itself_ends_as_ever(babbler: Babbler) -> None:
    item = asking({"enum": [[1, 2]]}, 9)
    assert babbler.say(babbler.sequence(item), 1).finish_reason == "stop"


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", r"[a-z]{2,}; end [0-9]+!", r"[a-z]{2,}; end [0-9]+!"),
        ("grammar", 'start: "<" body ">"\nbody: /[0-9]/ | "(" body body ")"\n', r"<[0-9()]+>"),
        ("json_object", "", r"\{.*\}"),
    ],
)
def test_other_forms_are_closed_too(babbler: Babbler, kind: Any, text: str, pattern: str) -> None:
    for max_tokens in range(16, 40):
        chat = asking({}, max_tokens, grammar=GrammarSpec(kind=kind, text=text))
        said = babbler.say(babbler.sequence(chat), max_tokens).text
        assert re.fullmatch(pattern, said, re.DOTALL), said
        assert said.count("(") == said.count(")") or kind == "json_object"


@pytest.mark.parametrize("parser", ["hermes", "mistral", "mistral_args", "llama3_json"])
@pytest.mark.parametrize("is_forced", [True, False])
@pytest.mark.parametrize("special", [(), ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")])
def test_calls_are_closed(parser: Any, is_forced: bool, special: tuple[str, ...]) -> None:
    babbler = Babbler(TextCodec(merged_tokenizer(*special)), tool_call_parser=parser)
    chat = ChatInput(
        messages=(ChatMessage(role="user", content="abc"),),
        params=SamplingParams(max_tokens=70, seed=1),
        tools=(ToolSpec(name="find", parameters=CITY, is_strict=True),),
        must_call=is_forced,
    )
    begins = {"hermes": "Well <tool_call>", "llama3_json": "{"}.get(parser, "Well [TOOL_CALLS]")
    for seed in range(6):
        sequence = babbler.sequence(chat)
        if not is_forced:
            for token in babbler.codec.encode(begins, add_special_tokens=False):
                assert sequence.append(token, None)
        said = babbler.say(sequence, seed).text
        answers = ParserChoice.of(babbler.conversations.details, chat).parser(opens_in_reasoning=False)
        answer = ParsedAnswer.of([*answers.push(said), *answers.flush()])
        assert answer.text.strip() in ("", "Well")
        assert answer.calls
        for call in answer.calls:
            jsonschema.validate(json.loads(call.arguments), CITY)


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
def test_reasoning_ends_in_time_for_the_form(special: tuple[str, ...]) -> None:
    tokenizer = merged_tokenizer(*special)
    tokenizer.chat_template = TEMPLATE + "{# </think> #}"
    babbler = Babbler(TextCodec(tokenizer))
    letters = babbler.codec.encode("x", add_special_tokens=False)
    sequence = babbler.sequence(asking(CITY, 80), opens_in_reasoning=True)
    _, closes, answer = babbler.say(sequence, 3, letters).text.partition("</think>")
    assert closes
    jsonschema.validate(json.loads(answer), CITY)


def completion(max_tokens: int, **params: Any) -> CompletionInput:
    form = GrammarSpec(kind="json_schema", text=json.dumps(CITY))
    fields: dict[str, Any] = {"max_tokens": max_tokens, "seed": 5, "grammar": form} | params
    return CompletionInput(prompts=("abc",), params=SamplingParams(**fields), stream=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_closes_alone_as_beside_others(llama: TransformersModel, run: Run, temperature: float) -> None:
    inputs = [completion(30 + n, seed=n, temperature=temperature) for n in range(6)]
    inputs += [completion(20, seed=3, grammar=None), completion(3)]
    alone = [run(llama, [item])[0].generation.choices[0] for item in inputs]
    together = [driven.generation.choices[0] for driven in run(llama, inputs, seed=9)]
    assert together == alone
    for choice in alone[:6]:
        jsonschema.validate(json.loads(choice.text), CITY)
        assert choice.finish_reason == "length"
    assert len(alone[7].text) == 3  # nothing of the form is so short


def test_what_closes_has_its_log_probabilities_and_the_same_text(llama: TransformersModel, run: Run) -> None:
    plain, told = run(llama, [completion(40), completion(40, num_top_logprobs=2)], seed=4)
    (choice,) = told.generation.choices
    assert choice.text == plain.generation.choices[0].text
    assert choice.finish_reason == "length"
    assert len(choice.logprobs) == told.finish.usage.counts["completion_tokens"]
    assert all(one.chosen.logprob <= 0 for one in choice.logprobs)
    assert "".join(delta.text for delta in told.deltas) == choice.text


def test_an_end_that_is_long_to_find_is_not_looked_for_at_each_token(babbler: Babbler) -> None:
    """What an answer's searches look at is bounded, and the answer matches its form all the same."""
    form = GrammarSpec(kind="regex", text="([a-z]{3} ){300}[a-z]*")
    sequence = babbler.sequence(asking({}, 1300, grammar=form))
    closing: Any = sequence.grammar._closing  # type: ignore[union-attr]  # pyright: ignore
    looked = 0

    class Counted:
        def __init__(self, search: Any) -> None:
            self._search = search
            self.vocabulary = search.vocabulary

        def find(self, position: Any, **bounds: int) -> Any:
            nonlocal looked
            found = self._search.find(position, **bounds)
            looked += found.num_looked
            return found

    closing._search = Counted(closing._search)
    said = babbler.say(sequence, 1).text
    assert re.fullmatch(form.text, said)
    assert looked < 3 * (600 + 1300), "of hundreds of tokens, each of which would have cost as much"
