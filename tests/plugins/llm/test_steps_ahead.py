"""Steps that begin before the last one's tokens are known give the same tokens, whoever joins, leaves or is cancelled."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sixfold.core.batching.budget import Objective, StepBudget
from sixfold.core.batching.entry import RequestState
from sixfold.core.batching.model import Granted, StepRange
from sixfold.core.batching.scheduler import Scheduler
from sixfold.core.batching.step_loop import StepLoop
from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import RequestCancelled
from sixfold.core.messages import Event, Failed, Increment, Request
from sixfold.plugins.llm import step_settler
from sixfold.plugins.llm.generation import (
    ChatInput,
    CompletionInput,
    Generation,
    GrammarSpec,
    SamplingParams,
    TextDelta,
)
from sixfold.plugins.llm.guess_choice import GuessChoice
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.text_codec import TextCodec
from tests.fakes import FakeClock

Run = Callable[..., Any]


class Outbox:
    """Keeps what the loop sends."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self.texts: dict[str, str] = {}
        self.results: dict[str, Generation] = {}
        self.errors: dict[str, Exception] = {}

    def emit(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if isinstance(event, Increment):
                assert isinstance(event.output, TextDelta)
                self.texts[event.request_id] = self.texts.get(event.request_id, "") + event.output.text
            elif isinstance(event, Failed):
                self.errors[event.request_id] = event.error

    def finish(self, states: Sequence[RequestState]) -> None:
        for state in states:
            end = self._model.finish(state.request, [entry.sequence for entry in state.entries])
            assert isinstance(end.result, Generation)
            self.results[state.request.request_id] = end.result

    def granted(self, grants: Sequence[tuple[RequestState, int]]) -> None: ...
    def ended(self, state: RequestState) -> None: ...
    def stepped(self, units: int, seconds: float) -> None: ...


class LoopRun:
    """Requests that join, leave and are cancelled at random turns of a real step loop.

    Args:
        model: The model.
        seed: Of the schedule.
        max_units: Of a step.
    """

    def __init__(self, model: TransformersModel, seed: int, *, max_units: int = 40) -> None:
        clock = FakeClock()
        budget = StepBudget(StepRange(min_units=1, initial_units=max_units, max_units=max_units), Objective())
        self.model = model
        self.outbox = Outbox(model)
        self.scheduler = Scheduler(model, budget, max_running_sequences=8, patience_s=1e9)
        self.loop = StepLoop(model, self.scheduler, budget, self.outbox, clock)
        self.random = random.Random(seed)
        self.num_followed = 0

    def run(self, inputs: Sequence[CompletionInput], cancelled: Sequence[int] = ()) -> list[Generation | None]:
        """The answers in order; None for one that was cancelled."""
        waiting = list(range(len(inputs)))
        open_ids: list[int] = []
        while waiting or not self.loop.idle or self.loop.inbox:
            if waiting and self.random.random() < 0.4:
                place = waiting.pop(self.random.randrange(len(waiting)))
                self._open(place, inputs[place])
                open_ids.append(place)
            for place in open_ids:
                if place in cancelled and self.random.random() < 0.15:
                    self.loop.inbox.append(lambda loop, place=place: loop.cancel(str(place)))  # type: ignore[misc]
            self.loop.run_once()
            self.num_followed += not self.loop.idle and self.loop._flight is not None  # pyright: ignore[reportPrivateUsage]
        assert self.model.stats()["kv_blocks_used"] == 0
        assert all(isinstance(error, RequestCancelled) for error in self.outbox.errors.values()), self.outbox.errors
        return [self.outbox.results.get(str(place)) for place in range(len(inputs))]

    def _open(self, place: int, item: CompletionInput) -> None:
        request: Request[ChatInput | CompletionInput] = Request(request_id=str(place), input=item, arrived_s=0.0)
        state = RequestState(request, 1, place)
        pieces = self.model.split(request)
        self.loop.inbox.append(lambda loop: loop.open(state, len(pieces)))
        for piece in pieces:
            sequences = self.model.prepare(request, piece)
            self.loop.inbox.append(lambda loop, sequences=sequences: loop.add_prepared(state, sequences))  # type: ignore[misc]


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    shared = tuple(source.randrange(5, 60) for _ in range(40))
    return [
        (shared if i % 3 == 0 else ()) + tuple(source.randrange(5, 60) for _ in range(source.randrange(1, 50)))
        for i in range(count)
    ]


def inputs(count: int, **params: Any) -> list[CompletionInput]:
    chosen: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, **params}
    return [
        CompletionInput(prompts=(p,), params=SamplingParams(max_tokens=4 + 2 * i, **chosen), stream=True)
        for i, p in enumerate(prompts(count))
    ]


@pytest.fixture(scope="module")
def ahead(model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel]) -> TransformersModel:
    return load_tiny(model_folder("llama"), steps_ahead=True, speculation={"method": "off"})


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.0, "seed": 4, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.5, "seed": 5, "top_p": 0.95},
        {"temperature": 0.7, "seed": 6, "presence_penalty": 0.9, "frequency_penalty": 1.1, "repetition_penalty": 1.3},
        {"frequency_penalty": 1.5, "num_top_logprobs": 3},
        {"stop": ("e", "a"), "min_tokens": 3},
        {"ignore_eos": False, "logit_bias": ((7, 4.0),)},
    ],
    ids=["greedy", "sampled", "top-k", "top-p", "penalties", "logprobs", "stop", "eos"],
)
def test_answers_are_those_of_one_request_alone(
    params: dict[str, Any], ahead: TransformersModel, llama: TransformersModel, run: Run
) -> None:
    items = inputs(8, **params)
    expected = [driven.finish.result for item in items for driven in run(llama, [item])]
    for seed in (0, 1):
        check_alike(LoopRun(ahead, seed), items, expected)


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 4, "top_k": 20}], ids=["greedy", "top-k"]
)
def test_guesses_and_steps_ahead_may_take_turns_at_any_step(
    params: dict[str, Any],
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., TransformersModel],
    llama: TransformersModel,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = random.Random(3)
    likely: dict[str, Any] = {"logit_bias": tuple((token, 3.0) for token in range(65, 71))}  # so that they come again

    def by_chance(_self: GuessChoice, _num_sequences: int) -> bool:
        return source.random() < 0.5

    monkeypatch.setattr(GuessChoice, "guesses", by_chance)
    model = load_tiny(model_folder("llama"), steps_ahead=True, speculation={"method": "ngram", "max_sequences": 8})
    items = [
        CompletionInput(
            prompts=(p * 2,), params=SamplingParams(max_tokens=24, ignore_eos=True, **likely, **params), stream=True
        )
        for p in prompts(6)
    ]
    expected = [driven.finish.result for item in items for driven in run(llama, [item])]
    for seed in (0, 1):
        check_alike(LoopRun(model, seed, max_units=200), items, expected)
    assert model.stats()["spec_decode_num_draft_tokens_total"] > 10


class CountingClock:
    """In place of the module `time`: each look at it is a second later."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_the_pace_of_steps_that_decode_is_told_as_it_is(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tiny(model_folder("llama"), steps_ahead=True, speculation={"method": "ngram"})
    monkeypatch.setattr(step_settler, "time", CountingClock())
    intake, speculator = model._settler.intake, model._speculator  # pyright: ignore[reportPrivateUsage]
    told: list[tuple[int, int, float]] = []
    expected: list[tuple[int, int, float]] = []
    observe, settle = GuessChoice.observe, model._settler.settle  # pyright: ignore[reportPrivateUsage]
    followed_decode = False

    def observed(self: GuessChoice, num_sequences: int, **found: Any) -> bool:
        told.append((num_sequences, found["num_tokens"], found["seconds"]))
        return observe(self, num_sequences, **found)

    def settled(step: Any, its: Any) -> Any:
        nonlocal followed_decode
        before = intake.num_generated_tokens
        decodes = all(s.num_computed >= s.num_prompt_tokens for s in step.sequences)
        outcomes = settle(step, its)
        if decodes and followed_decode:  # the clock is looked at once a step
            expected.append((len(step.sequences), intake.num_generated_tokens - before, 1.0))
        followed_decode = decodes
        return outcomes

    monkeypatch.setattr(GuessChoice, "observe", observed)
    monkeypatch.setattr(model._settler, "settle", settled)  # pyright: ignore[reportPrivateUsage]
    again = ((65, 90.0),)  # so that guesses are right
    params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.0, logit_bias=again)
    items = [CompletionInput(prompts=(p,), params=params, stream=True) for p in prompts(5)]
    LoopRun(model, 0, max_units=8).run(items)
    assert told == expected
    assert len({num for num, _, _ in told}) > 1
    assert speculator.stats()["spec_decode_num_accepted_tokens_total"] > 50
    assert sum(tokens for _, tokens, _ in told) > sum(num for num, _, _ in told)


def test_guesses_are_given_up_for_steps_ahead_though_the_last_ones_are_still_there(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tiny(model_folder("llama"), steps_ahead=True, speculation={"method": "ngram", "num_tokens": 1})
    decisions = DecisionLog()
    model.tell(decisions)
    observe = GuessChoice.observe
    num_ahead = 0

    def slow_guesses(self: GuessChoice, num_sequences: int, **found: Any) -> bool:
        nonlocal num_ahead
        num_ahead += not found["guessed"]
        # A device whose steps take ten times as long where the next one can't begin meanwhile.
        told: dict[str, Any] = found | {"seconds": 0.02 if found["guessed"] else 0.002}
        return observe(self, num_sequences, **told)

    monkeypatch.setattr(GuessChoice, "observe", slow_guesses)
    params = SamplingParams(max_tokens=200, ignore_eos=True, temperature=0.0, logit_bias=((65, 90.0),))
    LoopRun(model, 0).run([CompletionInput(prompts=((5, 6, 7),), params=params, stream=True)] * 4)
    assert num_ahead > 40  # though there is a guess after every step
    told = [each for each in decisions.recent if each.what == "guesses_or_steps_ahead"]
    assert {(each.before, each.after) for each in told} == {("guesses", "steps ahead")}
    assert "ms apart with guesses and 2.00 ms with steps ahead" in told[0].reason


def check_alike(loop: LoopRun, items: Sequence[CompletionInput], expected: Sequence[Generation]) -> None:
    """Runs all at random, two of them cancelled, and compares what is left."""
    found = loop.run(items, cancelled=(2, 5))
    assert loop.num_followed > 10
    for place, (mine, its) in enumerate(zip(found, expected, strict=True)):
        if mine is None:
            assert place in (2, 5)
            continue
        assert [c.text for c in mine.choices] == [c.text for c in its.choices]
        assert [c.finish_reason for c in mine.choices] == [c.finish_reason for c in its.choices]
        assert loop.outbox.texts.get(str(place), "") == mine.choices[0].text
        for mine_choice, its_choice in zip(mine.choices, its.choices, strict=True):
            assert [p.chosen.text for p in mine_choice.logprobs] == [p.chosen.text for p in its_choice.logprobs]


@pytest.mark.parametrize("seed", range(1))
def test_grammars_choices_and_free_text_share_steps_that_go_ahead(
    seed: int, ahead: TransformersModel, llama: TransformersModel, run: Run
) -> None:
    form = GrammarSpec(kind="regex", text="[ab]{12}")
    items = [
        CompletionInput(prompts=(p,), params=SamplingParams(max_tokens=30, temperature=0.9, seed=i), num_choices=2)
        for i, p in enumerate(prompts(5))
    ]
    params = SamplingParams(max_tokens=30, temperature=0.9, seed=1, grammar=form)
    items.insert(3, CompletionInput(prompts=(prompts(1)[0],), params=params))
    expected = [driven.finish.result for item in items for driven in run(llama, [item])]
    found = LoopRun(ahead, seed, max_units=200).run(items)
    assert [[c.text for c in g.choices] for g in found if g is not None] == [
        [c.text for c in g.choices] for g in expected
    ]


@pytest.mark.parametrize("seed", range(1))
def test_a_small_cache_preempts_what_is_in_flight_and_changes_no_token(
    seed: int,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., TransformersModel],
    llama: TransformersModel,
    run: Run,
) -> None:
    token_bytes = llama._cache.num_bytes // llama._cache.pool.num_blocks // llama._cache.block_size  # pyright: ignore[reportPrivateUsage]
    small = load_tiny(
        model_folder("llama"),
        steps_ahead=True,
        speculation={"method": "off"},
        max_model_len=160,
        kv_cache_bytes=16 * 14 * token_bytes,
    )
    items = inputs(8)
    expected = [driven.finish.result for item in items for driven in run(llama, [item])]
    loop = LoopRun(small, seed)
    found = loop.run(items)
    assert loop.scheduler.num_preemptions > 0
    assert [g.choices[0].text for g in found if g is not None] == [g.choices[0].text for g in expected]


def test_a_failed_step_takes_nothing_from_the_one_that_was_begun_on_top(
    ahead: TransformersModel, llama: TransformersModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = inputs(6)
    expected = [driven.finish.result for item in items for driven in run(llama, [item])]
    settle = ahead._settle  # pyright: ignore[reportPrivateUsage]
    turns = iter(range(10_000))

    def sometimes(step: Any) -> Any:
        if next(turns) % 7 == 3:
            step.abandon(ahead._cache)  # pyright: ignore[reportPrivateUsage]
            raise RuntimeError("out of luck")
        return settle(step)

    monkeypatch.setattr(ahead, "_settle", sometimes)
    found = LoopRun(ahead, 1).run(items)
    assert [g.choices[0].text for g in found if g is not None] == [g.choices[0].text for g in expected]


def test_greedy_tokens_equal_those_of_generate(model_folder: Callable[[str], Path], ahead: TransformersModel) -> None:
    items = inputs(6, num_top_logprobs=0)
    answers = LoopRun(ahead, 2).run(items)
    models: Any = transformers.AutoModelForCausalLM  # typed in part
    network = models.from_pretrained(model_folder("llama"), dtype=torch.float32).eval()
    codec = TextCodec.load(model_folder("llama"))
    for item, answer in zip(items, answers, strict=True):
        ids = torch.tensor([item.prompts[0]])
        count = item.params.max_tokens
        made = network.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert answer is not None
        tokens = [codec.token_bytes(token) for token in made[0, ids.shape[1] :].tolist()]
        assert [place.chosen.raw for place in answer.choices[0].logprobs] == tokens


def test_a_step_that_waited_behind_another_is_timed_from_that_ones_end(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tiny(model_folder("llama"), steps_ahead=True, speculation={"method": "off"})
    tier = model._cache.keep_on_host(1 << 20)  # pyright: ignore[reportPrivateUsage]
    timed: list[tuple[list[int], float]] = []

    def observe(units: Sequence[int], seconds: float) -> None:
        timed.append((list(units), seconds))

    def starts_slowly(_layout: object) -> bool:
        return False

    monkeypatch.setattr(tier, "observe_step", observe)
    clock = FakeClock()
    monkeypatch.setattr("time.perf_counter", clock)
    batches: list[list[Granted[Any]]] = []
    for item in inputs(2):
        request: Request[ChatInput | CompletionInput] = Request(request_id="r", input=item, arrived_s=0.0)
        sequences = [s for piece in model.split(request) for s in model.prepare(request, piece)]
        batches.append([Granted(s, model.reserve(s, s.num_prompt_tokens)) for s in sequences])

    first = model.begin(batches[0])
    assert first.may_be_followed
    clock.advance(1.0)
    with monkeypatch.context() as patched:
        patched.setattr(model._decoder, "starts_at_once", starts_slowly)  # pyright: ignore[reportPrivateUsage]
        second = model.begin(batches[1])
    clock.advance(9.0)
    first.finish()
    clock.advance(2.0)
    second.finish()

    assert timed == [([granted.units for granted in batches[1]], 2.0)]
    for granted in (*batches[0], *batches[1]):
        model.release(granted.sequence)
