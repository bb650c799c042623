"""Guessed tokens change no answer: not its tokens, not its end, not its probabilities, whatever the guesses are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batching.model import Granted
from sixfold.core.messages import Request
from sixfold.plugins.llm.draft_pace import DraftPace
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.ngram import continue_from_match
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Proposer, Speculator
from sixfold.plugins.llm.text_codec import TextCodec

Run = Callable[..., list[Any]]
PROMPTS = [tuple(random.Random(n).randrange(256) for _ in range(3 + 7 * n)) for n in range(6)]


class Oracle:
    """Knows the answers, and is wrong at random places."""

    learns_from_every_step = False

    def __init__(self, answers: Sequence[Sequence[int]], wrong: float = 0.3, wrong_token: int = 99) -> None:
        self.answers = answers
        self.wrong = wrong
        self.wrong_token = wrong_token
        self.random = random.Random(1)

    def follow(self, sequences: Sequence[SequenceState]) -> None:
        return

    def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> list[list[int]]:
        return [self.continue_(s.token_ids, limit) for s, limit in zip(sequences, limits, strict=True)]

    def continue_(self, token_ids: list[int], limit: int) -> list[int]:
        known = len(token_ids)
        matching = [answer for answer in self.answers if list(answer[:known]) == token_ids]
        right = matching[0][known : known + limit] if matching else ()
        return [self.wrong_token if self.random.random() < self.wrong else token for token in right]

    def release(self, sequence: SequenceState) -> None:
        return


@pytest.fixture
def guessing() -> Iterator[Callable[[Any, Proposer | None], Any]]:
    """Gives a model another proposer for the time of the test."""
    changed: list[tuple[Any, Any]] = []

    def give(model: Any, proposer: Proposer | None) -> Any:
        changed.append((model, model._speculator))
        model._speculator = Speculator(proposer, num_tokens=5, max_sequences=100)
        return model

    yield give
    for model, before in reversed(changed):
        model._speculator = before


def completion(prompt: tuple[int, ...], **params: Any) -> CompletionInput:
    fields: dict[str, Any] = {"max_tokens": 30, "num_top_logprobs": 2, "ignore_eos": True} | params
    return CompletionInput(prompts=(prompt,), params=SamplingParams(**fields), stream=True)


def answer_of(driven: Any, codec: TextCodec) -> list[int]:
    ids = {codec.token_bytes(i): i for i in range(260)}
    return [ids[token.chosen.raw] for token in driven.generation.choices[0].logprobs]


def num_accepted(model: TransformersModel) -> float:
    return model.stats()["spec_decode_num_accepted_tokens_total"]


@pytest.fixture(scope="module")
def codec(model_folder: Callable[[str], Path]) -> TextCodec:
    return TextCodec.load(model_folder("llama"))


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-sliding", "gemma3", "gpt2", "mixtral"])
@pytest.mark.parametrize("plain", [True, False])
def test_greedy_answers_are_the_same_with_right_and_wrong_guesses(
    name: str,
    plain: bool,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    run: Run,
    guessing: Callable[..., Any],
    codec: TextCodec,
) -> None:
    model = guessing(load_tiny(model_folder(name)), None)
    inputs = [completion(p, temperature=0) for p in PROMPTS]
    expected = run(model, inputs)
    answers = [[*p, *answer_of(d, codec)] for p, d in zip(PROMPTS, expected, strict=True)]
    if plain:  # the way without logprobs is another one
        inputs = [completion(p, temperature=0, num_top_logprobs=None) for p in PROMPTS]
    guessing(model, Oracle(answers))
    for seed in (None, 2):
        assert [d.texts for d in run(model, inputs, seed=seed)] == [d.texts for d in expected]
    assert num_accepted(model) > 50


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 5},
        {"temperature": 1.2, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
        {"temperature": 1.0, "frequency_penalty": 2.0, "logit_bias": ((7, 5.0), (8, 5.0))},
        {"temperature": 0.7, "ignore_eos": False, "min_tokens": 12, "logit_bias": ((257, 8.0),)},
    ],
)
def test_every_parameter_sees_accepted_tokens_one_by_one(
    params: dict[str, Any], llama: TransformersModel, run: Run, guessing: Callable[..., Any], codec: TextCodec
) -> None:
    guessing(llama, None)
    inputs = [completion(p, seed=n, **params) for n, p in enumerate(PROMPTS)]
    expected = run(llama, inputs)
    guessing(llama, Oracle([[*p, *answer_of(d, codec)] for p, d in zip(PROMPTS, expected, strict=True)]))
    for seed in (None, 4):
        got = run(llama, inputs, seed=seed)
        assert [answer_of(d, codec) for d in got] == [answer_of(d, codec) for d in expected]
        for d, g in zip(expected, got, strict=True):
            assert g.finish.finish_reason == d.finish.finish_reason
            assert g.finish.usage.counts["completion_tokens"] == d.finish.usage.counts["completion_tokens"]
    assert num_accepted(llama) > 30


def test_log_probabilities_are_those_of_each_token(
    llama: TransformersModel, run: Run, guessing: Callable[..., Any], codec: TextCodec
) -> None:
    guessing(llama, None)
    (expected,) = run(llama, [completion(PROMPTS[1], temperature=0)])
    guessing(llama, Oracle([[*PROMPTS[1], *answer_of(expected, codec)]]))
    (got,) = run(llama, [completion(PROMPTS[1], temperature=0)])
    for ours, theirs in zip(got.generation.choices[0].logprobs, expected.generation.choices[0].logprobs, strict=True):
        assert [t.raw for t in ours.top] == [t.raw for t in theirs.top]
        assert [t.logprob for t in ours.top] == pytest.approx([t.logprob for t in theirs.top], abs=1e-3)


def test_a_stop_inside_of_accepted_tokens_ends_the_answer_there(
    llama: TransformersModel, run: Run, guessing: Callable[..., Any], codec: TextCodec
) -> None:
    guessing(llama, None)
    (free,) = run(llama, [completion(PROMPTS[2], temperature=0)])
    answer = answer_of(free, codec)
    cases: list[dict[str, Any]] = [{"max_tokens": n} for n in (1, 2, 3, 4, 9)]
    cases += [{"stop_token_ids": (answer[n],)} for n in (0, 1, 2, 7)]
    cases += [{"stop": (free.texts[0][n : n + 2],)} for n in (3, 8, 12)]
    inputs = [completion(PROMPTS[2], temperature=0, **case) for case in cases]
    expected = run(llama, inputs)
    guessing(llama, Oracle([[*PROMPTS[2], *answer]], wrong=0))
    before = num_accepted(llama)
    for got, wanted in zip(run(llama, inputs), expected, strict=True):
        assert got.texts == wanted.texts
        assert got.finish.finish_reason == wanted.finish.finish_reason
        assert got.finish.usage.counts["completion_tokens"] == wanted.finish.usage.counts["completion_tokens"]
        assert "".join(d.text for d in got.deltas) == got.texts[0]
        assert sum(d.num_tokens for d in got.deltas) == got.finish.usage.counts["completion_tokens"]
    assert num_accepted(llama) > before


def test_several_tokens_of_one_step_come_in_one_increment(
    llama: TransformersModel, run: Run, guessing: Callable[..., Any], codec: TextCodec
) -> None:
    guessing(llama, None)
    (expected,) = run(llama, [completion(PROMPTS[3], temperature=0)])
    guessing(llama, Oracle([[*PROMPTS[3], *answer_of(expected, codec)]], wrong=0))
    (got,) = run(llama, [completion(PROMPTS[3], temperature=0)])
    assert max(d.num_tokens for d in got.deltas) == 6
    assert len(got.deltas) < 30 / 4


def test_the_distribution_of_sampled_answers_is_kept(
    llama: TransformersModel, run: Run, guessing: Callable[..., Any]
) -> None:
    """Chi-square of the first three tokens over four letters, plain against guessed, of different seeds."""
    letters = (65, 66, 67, 68)
    num_answers = 1200

    def count(first_seed: int, proposer: Proposer | None) -> Counter[str]:
        guessing(llama, proposer)
        params: dict[str, Any] = {"max_tokens": 3, "logit_bias": tuple((i, 40.0) for i in letters), "temperature": 4.0}
        inputs = [
            CompletionInput(prompts=((1, 2, 3),), params=SamplingParams(seed=first_seed + n, **params), num_choices=40)
            for n in range(num_answers // 40)
        ]
        return Counter(text for driven in run(llama, inputs) for text in driven.texts)

    class Fixed:
        """Always guesses the same: now right, now wrong."""

        learns_from_every_step = False

        def follow(self, sequences: Sequence[SequenceState]) -> None:
            return

        def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> list[list[int]]:
            return [[65, 67][:limit] for limit in limits]

        def release(self, sequence: SequenceState) -> None:
            return

    plain, guessed = count(0, None), count(5000, Fixed())
    cells = sorted(plain.keys() | guessed.keys())
    a, b = (np.array([c[cell] for cell in cells], dtype=float) for c in (plain, guessed))
    assert a.sum() == b.sum() == num_answers
    rare = a + b < 10
    a, b = (np.append(x[~rare], x[rare].sum()) for x in (a, b))
    statistic = float(((a - b) ** 2 / np.maximum(a + b, 1)).sum())
    degrees = len(a) - 1
    assert degrees > 20
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5
    assert llama.stats()["spec_decode_num_draft_tokens_total"] > num_accepted(llama) > 0


def test_a_guess_without_finite_logits_spoils_nothing(
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    run: Run,
    guessing: Callable[..., Any],
    codec: TextCodec,
) -> None:
    model = guessing(load_tiny(model_folder("llama")), None)
    (expected,) = run(model, [completion(PROMPTS[1], temperature=0)])
    answer = answer_of(expected, codec)
    poison = next(i for i in range(256) if i not in answer and i not in PROMPTS[1])
    with torch.no_grad():
        model._decoder._model.get_input_embeddings().weight[poison] = torch.nan
    guessing(model, Oracle([[*PROMPTS[1], *answer]], wrong=0.5, wrong_token=poison))
    (got,) = run(model, [completion(PROMPTS[1], temperature=0)])
    assert got.texts == expected.texts


def test_a_sequence_asks_for_its_guesses_and_runs_with_fewer(
    llama: Any, run: Run, guessing: Callable[..., Any], codec: TextCodec
) -> None:
    guessing(llama, None)
    (expected,) = run(llama, [completion(PROMPTS[1], temperature=0)])
    guessing(llama, Oracle([[*PROMPTS[1], *answer_of(expected, codec)]], wrong=0))
    request: Request[Any] = Request(request_id="r", input=completion(PROMPTS[1], temperature=0), arrived_s=0.0)
    (sequence,) = llama.prepare(request, llama.split(request)[0])
    granted = 0
    while sequence.finish_reason is None:
        cost = llama.cost(sequence)
        assert cost.min_units == 1
        assert cost.units == sequence.num_uncomputed - llama._cache.prefix.num_found(sequence) * (
            not sequence.num_blocks
        ) + len(sequence.drafts)
        granted = max(1, (granted + 1) % 4)
        llama.step([Granted(sequence, llama.reserve(sequence, min(granted, cost.units)))])
    llama.release(sequence)
    assert sequence.text == expected.texts[0]


def test_a_proposer_that_fails_ends_guessing_and_no_request(
    llama: TransformersModel, run: Run, guessing: Callable[..., Any], codec: TextCodec
) -> None:
    guessing(llama, None)
    (expected,) = run(llama, [completion(PROMPTS[1], temperature=0)])

    class Failing(Oracle):
        def follow(self, sequences: Sequence[SequenceState]) -> None:
            return

        def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> list[list[int]]:
            if len(sequences[0].token_ids) > 20:
                raise RuntimeError("out of memory")
            return super().propose(sequences, limits)

    guessing(llama, Failing([[*PROMPTS[1], *answer_of(expected, codec)]], wrong=0))
    (got,) = run(llama, [completion(PROMPTS[1], temperature=0)])
    assert got.texts == expected.texts
    assert "".join(d.text for d in got.deltas) == got.texts[0]
    assert 0 < num_accepted(llama) < 20


def test_guesses_leave_the_last_room_to_others(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], guessing: Callable[..., Any]
) -> None:
    model = guessing(load_tiny(model_folder("llama"), kv_cache_bytes=60_000, block_size_tokens=4), None)
    pool = model._cache.pool
    request: Request[Any] = Request(request_id="r", input=completion((1, 2, 3)), arrived_s=0.0)
    (sequence,) = model.prepare(request, model.split(request)[0])
    model.step([Granted(sequence, model.reserve(sequence, 3))])
    sequence.drafts = (1, 2, 3, 4, 5)
    others = pool.allocate(pool.num_free - 1)
    assert model.reserve(sequence, 6) == 1
    pool.release(others)
    assert model.reserve(sequence, 6) == 6
    model.release(sequence)


def test_without_matches_nothing_is_guessed_and_steps_of_many_guess_nothing(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder("llama"), speculation={"max_sequences": 2})
    loop = completion(tuple([5, 6, 7] * 8), temperature=0, logit_bias=((5, 90.0),))
    run(model, [loop] * 3)
    assert model.stats()["spec_decode_num_drafts_total"] == 0
    run(model, [loop] * 2)
    stats = model.stats()
    assert stats["spec_decode_num_draft_tokens_total"] >= stats["spec_decode_num_accepted_tokens_total"] >= 40
    assert stats["spec_decode_num_drafts_total"] < stats["spec_decode_num_accepted_tokens_total"] / 3


@pytest.mark.parametrize(
    ("history", "limit", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 2, [9, 1]),
        ([1, 2, 9, 7, 1, 2, 8, 7, 1, 2], 1, [8]),  # of equal matches the latest
        ([5, 1, 2, 9, 4, 1, 2, 8, 5, 1, 2], 1, [9]),  # the longest before the latest
        ([1, 2, 1, 2, 1, 2], 3, [1, 2, 1]),  # a loop goes on
        ([7, 7, 7, 7, 7], 2, [7, 7]),
        ([3, 1, 3], 2, []),  # one token is too short a match
        ([1, 2, 3, 4], 2, []),
        ([1], 2, []),
    ],
)
def test_what_followed_the_longest_match_is_proposed(history: list[int], limit: int, expected: list[int]) -> None:
    found = continue_from_match(np.array(history), min_match=2, max_match=4, limit=limit)
    assert found.tolist() == expected


def guess_wrong(pace: DraftPace) -> int:
    length = pace.next_length(7, cost=0.1)
    if length:
        pace.observe(length, 0)
    return length


def test_right_guesses_make_longer_ones_and_wrong_guesses_pauses() -> None:
    pace = DraftPace()
    first = pace.next_length(7, cost=0.1)
    for _ in range(20):
        pace.observe(5, 5)
    assert pace.next_length(7, cost=0.1) == 7 > first > 1
    asked = [guess_wrong(pace) for _ in range(400)]
    assert sum(asked[:20]) > 20
    assert 1 <= sum(asked[200:]) < 6
    pace.observe(1, 1)
    assert pace.next_length(7, cost=0.1) >= 1


@settings(deadline=None)
@given(
    st.integers(1, 20), st.floats(0.01, 1.0), st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), max_size=60)
)
def test_whatever_guesses_do_their_number_stays_in_what_was_declared(
    limit: int, row_cost: float, steps: list[tuple[int, int]]
) -> None:
    pace = DraftPace()
    for num_right, num_sequences in steps:
        length = pace.next_length(limit, cost=num_sequences * row_cost)
        assert 0 <= length <= limit
        if length:
            pace.observe(length, min(num_right, length))
        assert 0 <= pace.acceptance <= 1


def test_the_dearer_a_guess_the_surer_it_must_be() -> None:
    pace = DraftPace()
    lengths = [pace.next_length(20, cost=0.1 * n) for n in (1, 2, 4)]
    assert lengths[0] > lengths[1] > lengths[2] >= 1
    assert [pace.next_length(20, cost=0.8) for _ in range(5)] == [1, 0, 0, 0, 0]


def test_the_cheaper_a_guess_the_more_are_made() -> None:
    pace = DraftPace()
    lengths = [pace.next_length(20, cost=cost) for cost in (0.02, 0.1, 0.4)]
    assert lengths[0] > lengths[1] > lengths[2] >= 1
    assert pace.next_length(20, cost=0.9) == 1  # a first try, and then a pause
    assert pace.next_length(20, cost=0.9) == 0
