"""What a request wants of its answer's form is kept to the character, whatever the model would rather say."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest

from sixfold.core.batching.model import Granted
from sixfold.core.errors import InvalidRequest, RequestError, StepFailed
from sixfold.core.messages import Request
from sixfold.plugins.llm.generation import ChatInput, CompletionInput, GrammarSpec, SamplingParams
from sixfold.plugins.llm.grammar import Grammar
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.model import TransformersModel

Run = Callable[..., list[Any]]

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema(value: object, **more: Any) -> GrammarSpec:
    return GrammarSpec(kind="json_schema", text=json.dumps(value), **more)


def asking(grammar: GrammarSpec | None, **params: Any) -> CompletionInput:
    fields: dict[str, Any] = {"max_tokens": 120, "seed": 5} | params
    return CompletionInput(prompts=("abc",), params=SamplingParams(grammar=grammar, **fields), stream=True)


def request_of(item: CompletionInput, request_id: str = "r") -> Request[ChatInput | CompletionInput]:
    return Request(request_id=request_id, input=item, arrived_s=0.0)


def only_choice(driven: Any) -> Any:
    (choice,) = driven.generation.choices
    return choice


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_an_answer_of_a_schema_validates_and_ends_by_itself(
    llama: TransformersModel, run: Run, temperature: float
) -> None:
    choice = only_choice(run(llama, [asking(schema(PERSON), temperature=temperature)])[0])
    jsonschema.validate(json.loads(choice.text), PERSON)
    assert choice.finish_reason == "stop"


def test_many_schemas_share_a_batch_with_free_text_and_preemptions(llama: TransformersModel, run: Run) -> None:
    inputs = [asking(schema(PERSON), seed=i) for i in range(6)] + [asking(None, seed=3, max_tokens=20)]
    alone = [only_choice(run(llama, [item])[0]).text for item in inputs]
    together = [only_choice(driven).text for driven in run(llama, inputs, seed=9)]
    assert together == alone
    for text in together[:-1]:
        jsonschema.validate(json.loads(text), PERSON)


def test_each_choice_of_a_request_has_its_own_place_in_the_grammar(llama: TransformersModel, run: Run) -> None:
    item = CompletionInput(
        prompts=("a", "b"), params=SamplingParams(max_tokens=120, grammar=schema(PERSON)), num_choices=3
    )
    (driven,) = run(llama, [item], seed=1)
    for text in driven.texts:
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", r"[a-c]{3}-\d{2}/x", r"[a-c]{3}-\d{2}/x"),
        ("choice", '["yes", "no", "é\\n\\"/"]', 'yes|no|é\n"/'),
        ("grammar", 'start: "<" body ">"\nbody: /[0-9]/ | "(" body ")"\n', r"<\(*[0-9]\)*>"),
        ("grammar", 'root ::= "left" | "right"', r"left|right"),
    ],
)
def test_other_forms_match_to_the_end(llama: TransformersModel, run: Run, kind: Any, text: str, pattern: str) -> None:
    choice = only_choice(run(llama, [asking(GrammarSpec(kind=kind, text=text))])[0])
    assert re.fullmatch(pattern, choice.text)
    assert choice.finish_reason == "stop"


def test_json_has_at_most_one_space_between_its_parts_and_none_if_compact(llama: TransformersModel, run: Run) -> None:
    # A bias towards spaces stands for a model that would write nothing else.
    space = run(llama, [asking(GrammarSpec(kind="regex", text=" "), num_top_logprobs=0)])[0]
    assert only_choice(space).text == " "
    biased: dict[str, Any] = {"temperature": 0, "logit_bias": ((_ids_of(llama, " ")[0], 100.0),)}
    numbers = {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "minItems": 2, "maxItems": 2}
    spaced = only_choice(run(llama, [asking(schema(numbers), **biased)])[0]).text
    assert re.fullmatch(r"\[ \d , \d \]", spaced)
    compact = only_choice(run(llama, [asking(schema(numbers, is_compact=True), **biased)])[0]).text
    assert re.fullmatch(r"\[\d,\d\]", compact)


def _ids_of(model: Any, text: str) -> list[int]:
    ids: list[int] = model._preparer._codec.encode(text, add_special_tokens=False)
    return ids


def test_the_token_limit_cuts_an_answer_and_says_so(llama: TransformersModel, run: Run) -> None:
    choice = only_choice(run(llama, [asking(schema(PERSON), max_tokens=5)])[0])
    assert choice.finish_reason == "length"


def test_log_probabilities_are_those_of_the_untouched_model(llama: TransformersModel, run: Run) -> None:
    free = run(llama, [asking(None, temperature=0, max_tokens=1, num_top_logprobs=3)])[0]
    held = run(llama, [asking(GrammarSpec(kind="choice", text='["q"]'), temperature=0, num_top_logprobs=3)])[0]
    assert only_choice(held).text == "q"
    assert only_choice(held).logprobs[0].top == only_choice(free).logprobs[0].top
    assert only_choice(held).logprobs[0].chosen.logprob < only_choice(free).logprobs[0].chosen.logprob


def test_a_minimum_of_tokens_does_not_lengthen_a_finished_form(llama: TransformersModel, run: Run) -> None:
    choice = only_choice(run(llama, [asking(GrammarSpec(kind="choice", text='["ab"]'), min_tokens=9)])[0])
    assert (choice.text, choice.finish_reason) == ("ab", "stop")
    longer = only_choice(run(llama, [asking(GrammarSpec(kind="regex", text="a*"), min_tokens=9, temperature=0)])[0])
    assert len(longer.text) >= 9


def test_what_the_grammar_leaves_no_choice_about_costs_no_steps(
    llama: TransformersModel, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_steps = 0
    real = llama.step

    def counted(batch: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        return real(batch)

    monkeypatch.setattr(llama, "step", counted)
    sentence = "The quick brown fox jumps over the lazy dog."
    form = GrammarSpec(kind="regex", text=f"[ab]{sentence}[cd]{sentence}")
    before = llama.stats()["generation_tokens_total"]
    (driven,) = driver(llama).run([asking(form)])
    assert re.fullmatch(form.text, only_choice(driven).text)
    assert num_steps <= 4  # the last token before a choice may have to wait for it
    num_tokens = driven.finish.usage.counts["completion_tokens"]
    assert num_tokens == 2 * len(sentence) + 2 == llama.stats()["generation_tokens_total"] - before
    assert sum(delta.num_tokens for delta in driven.deltas) == num_tokens
    (cut,) = driver(llama).run([asking(form, max_tokens=20)])
    assert only_choice(cut).finish_reason == "length"
    assert only_choice(cut).text == only_choice(driven).text[:20]
    (slow,) = driver(llama).run([asking(form, num_top_logprobs=0)])
    assert len(only_choice(slow).logprobs) == num_tokens


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (schema({"type": "foo"}, param="p"), "foo"),
        (schema({"type": "array", "uniqueItems": True}, param="p"), "uniqueItems"),
        (schema({"not": {}}, param="p"), "not"),
        (schema({"$ref": "#/nowhere"}, param="p"), "nowhere"),
        (schema({"type": "object", "properties": {"a": False}, "required": ["a"]}, param="p"), "unsatisfiable"),
        (GrammarSpec(kind="json_schema", text="[1]", param="p"), "object"),
        (GrammarSpec(kind="json_schema", text="{", param="p"), "JSON"),
        (GrammarSpec(kind="json_schema", text='{"items":' * 2000 + "{}" + "}" * 2000, param="p"), "recursion"),
        (GrammarSpec(kind="regex", text="(a", param="p"), "unclosed"),
        (GrammarSpec(kind="regex", text="(?=a)b", param="p"), "look"),
        (GrammarSpec(kind="grammar", text="start: nothing", param="p"), "nothing"),
    ],
)
def test_what_cant_be_enforced_is_refused_before_a_step(
    llama: TransformersModel, error_of: Callable[..., RequestError], spec: GrammarSpec, word: str
) -> None:
    error = error_of(llama, asking(spec))
    assert isinstance(error, InvalidRequest)
    assert error.param == "p"
    assert word in error.message
    assert "<" not in error.message


def test_a_matcher_that_fails_harms_no_neighbour(llama: TransformersModel, run: Run) -> None:
    requests = [request_of(asking(GrammarSpec(kind="regex", text="[a-z]{40}")), str(i)) for i in range(2)]
    broken, sound = (llama.prepare(request, llama.split(request)[0])[0] for request in requests)
    assert broken.grammar is not None
    broken.grammar.accept(1_000, 100)  # no token of the vocabulary
    assert broken.grammar.failure is not None
    for sequence in (broken, sound):
        llama.reserve(sequence, 3)
    first, second = llama.step([Granted(broken, 3), Granted(sound, 3)])
    assert isinstance(first.error, StepFailed)
    assert first.done
    assert second.error is None
    assert not second.done
    for sequence in (broken, sound):
        llama.release(sequence)


def test_masks_are_computed_beside_the_device_thread(llama: TransformersModel) -> None:
    request = request_of(asking(GrammarSpec(kind="choice", text='["q"]')))
    (sequence,) = llama.prepare(request, llama.split(request)[0])
    assert sequence.grammar is not None
    threads: list[int] = []

    class Watched:
        is_active = True
        is_closing = False

        def __init__(self, grammar: Grammar) -> None:
            self._grammar = grammar

        def mask_into(self, words: Any) -> None:
            threads.append(threading.get_ident())
            self._grammar.mask_into(words)

    masks = GrammarMasks(vocab_size=260, num_mask_tokens=260)
    watched: Any = Watched(sequence.grammar)
    (row,) = masks.begin([None, watched]).wait().items()
    masks.close()
    assert row[0] == 1
    assert np.flatnonzero(row[1]).tolist() == _ids_of(llama, "q")
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize("closes", [(True, False), (False, True), (True, True)])
def test_masks_of_forms_that_are_closed_beside_others(llama: TransformersModel, closes: tuple[bool, bool]) -> None:
    grammars: list[Grammar] = []
    for is_closing in closes:
        request = request_of(asking(schema({"type": "string"}), max_tokens=3))
        (sequence,) = llama.prepare(request, llama.split(request)[0])
        assert sequence.grammar is not None
        if is_closing:
            assert sequence.grammar.accept(_ids_of(llama, '"')[0], 2)
            assert not sequence.grammar.accept(_ids_of(llama, "a")[0], 0)
        assert sequence.grammar.is_closing == is_closing
        grammars.append(sequence.grammar)
    masks = GrammarMasks(vocab_size=260, num_mask_tokens=260)
    rows = masks.begin(grammars).wait()
    masks.close()
    for place, is_closing in enumerate(closes):
        # Closed: the quotation mark that ends the string. Not begun: the one that begins it.
        assert np.flatnonzero(rows[place]).tolist() == _ids_of(llama, '"'), is_closing
