"""What the vLLM family makes of requests and of an engine's outputs, with a fake in the engine's place."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from sixfold.core.batching.model import DeviceLost, Finish, ModelInfo
from sixfold.core.errors import ConfigError, ContextLengthExceeded, InvalidRequest, ModelNotFound, StepFailed
from sixfold.core.messages import Request
from sixfold.core.source_ref import resolve_refs
from sixfold.plugins.llm.answer_style import AnswerStyle
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.generation import (
    ChatInput,
    ChatMessage,
    CompletionInput,
    Generation,
    GrammarSpec,
    ImagePart,
    KvTransferParams,
    SamplingParams,
    TextDelta,
    ToolSpec,
)
from sixfold.plugins.llm.grammar import GrammarCompiler
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.prepare import Preparer
from sixfold.plugins.llm.sampling import SamplingDefaults
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.vllm_arguments import engine_arguments
from sixfold.plugins.llm.vllm_choice import ChoiceCollector
from sixfold.plugins.llm.vllm_metrics import METRICS, EngineCounts
from sixfold.plugins.llm.vllm_model import VllmModel
from sixfold.plugins.llm.vllm_options import VllmOptions
from sixfold.plugins.llm.vllm_sleep import Wakefulness
from tests.plugins.llm.conftest import EOS_ID, VOCAB_SIZE, byte_tokenizer


@dataclass(kw_only=True)
class Made:
    """What vLLM calls a CompletionOutput."""

    text: str = ""
    token_ids: Sequence[int] = (65,)
    logprobs: Sequence[Mapping[int, Any]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Dead(Exception):
    """The engine is gone."""


class Refused(Exception):
    """The engine refuses a request."""


@dataclass
class FakeEngine:
    """Makes one letter a token, as many as are asked for; ``trouble`` is raised after the first."""

    trouble: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    adapters: list[Any] = field(default_factory=list[Any])
    num_adapters: int = 0
    forms: list[Mapping[str, str] | None] = field(default_factory=list["Mapping[str, str] | None"])
    cache_salts: list[str | None] = field(default_factory=list["str | None"])
    closed: list[str] = field(default_factory=list[str])
    aborted: list[str] = field(default_factory=list[str])
    start_trouble: Exception | None = None
    abort_trouble: Exception | None = None
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, "asyncio.Task[None]"])

    async def start(
        self,
        prompt_ids: list[int],
        sampling: Mapping[str, Any],
        *,
        form: Mapping[str, str] | None,
        stream: bool,
        request_id: str,
        adapter: Any,
        cache_salt: str | None,
        put: Callable[[Any], None],
    ) -> None:
        self.asked[request_id] = sampling
        self.forms.append(form)
        self.cache_salts.append(cache_salt)
        self.adapters.append(adapter)
        if self.start_trouble is not None:
            raise self.start_trouble
        self.tasks[request_id] = asyncio.create_task(self._make(request_id, sampling["max_tokens"], stream, put))

    async def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        if self.abort_trouble is not None:
            raise self.abort_trouble
        tasks = [task for each in request_ids if (task := self.tasks.get(each)) is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, request_id: str, count: int, stream: bool, put: Callable[[Any], None]) -> None:
        try:
            if not stream:
                if self.trouble is not None:
                    raise self.trouble
                whole = Made(text="x" * count, token_ids=[65] * count, finish_reason="length")
                put(SimpleNamespace(outputs=[whole], finished=True, num_cached_tokens=2))
                return
            for index in range(count):
                last = index == count - 1
                made = Made(text="x", finish_reason="length" if last else None)
                put(SimpleNamespace(outputs=[made], finished=last, num_cached_tokens=2))
                if self.trouble is not None:
                    raise self.trouble
                if not self.gate.is_set():
                    await self.gate.wait()
        except Exception as error:
            put(error)
        finally:
            self.closed.append(request_id)
            put(SimpleNamespace(outputs=[Made(text="late", finish_reason="abort")], finished=True))  # as vLLM does

    def new_adapter(self, name: str, folder: Path) -> str:
        self.num_adapters += 1
        return f"{name} {self.num_adapters}"

    def is_dead(self, error: Exception) -> bool:
        return isinstance(error, Dead)

    def is_refusal(self, error: Exception) -> bool:
        return isinstance(error, Refused)

    def shutdown(self) -> None:
        self.closed.append("all")


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(byte_tokenizer())


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    made.gate.set()
    return made


@pytest.fixture
def model(engine: FakeEngine, codec: TextCodec) -> VllmModel:
    return make_model(engine, codec)


def make_model(
    engine: FakeEngine,
    codec: TextCodec,
    *,
    thinks: bool = False,
    max_model_len: int = 64,
    wakefulness: Wakefulness | None = None,
) -> VllmModel:
    """The family over a fake engine."""
    conversations = ConversationWriter(
        codec,
        AnswerStyle.of("", tool_call_parser="hermes", reasoning_parser="think" if thinks else "none"),
        GrammarCompiler(codec, vocab_size=VOCAB_SIZE, eos_ids=(EOS_ID,)),
    )
    return VllmModel(
        engine=engine,
        conversations=conversations,
        preparer=Preparer(
            codec=codec,
            conversations=conversations,
            prefix=PrefixSharing(mode="per_key", block_size=65),
            defaults=SamplingDefaults(temperature=0.6, top_k=20),
            eos_ids=(EOS_ID,),
            vocab_size=VOCAB_SIZE,
            max_model_len=max_model_len,
        ),
        codec=codec,
        counts=EngineCounts(),
        info=ModelInfo(max_model_len=64, details={"kv_blocks_total": 7}),
        max_running_requests=9,
        max_running_units=1000,
        wakefulness=wakefulness,
    )


def request(wanted: ChatInput | CompletionInput) -> Request[ChatInput | CompletionInput]:
    """A request of a known id."""
    return Request(request_id="r", input=wanted, arrived_s=0.0)


async def run(model: VllmModel, wanted: ChatInput | CompletionInput) -> tuple[list[TextDelta], Finish[Any]]:
    """All deltas and the end."""
    asked = request(wanted)
    outputs: list[TextDelta | Generation] = []
    end = await model.run(asked, model.prepare(asked), outputs.append)
    assert all(isinstance(output, TextDelta) for output in outputs)
    return [output for output in outputs if isinstance(output, TextDelta)], end


def completion(*prompts: str, stream: bool = False, n: int = 1, echo: bool = False, **params: Any) -> CompletionInput:
    """A completion request."""
    return CompletionInput(
        prompts=prompts,
        params=msgspec.structs.replace(SamplingParams(max_tokens=3), **params),
        num_choices=n,
        stream=stream,
        echo=echo,
    )


async def test_an_answer_is_whole_and_counted(model: VllmModel) -> None:
    deltas, end = await run(model, completion("abcd"))
    assert not deltas
    assert isinstance(end.result, Generation)
    assert [choice.text for choice in end.result.choices] == ["xxx"]
    assert end.finish_reason == "length"
    assert end.usage.counts == {"prompt_tokens": 4, "completion_tokens": 3, "cached_tokens": 2, "reasoning_tokens": 0}


async def test_a_stream_has_a_delta_a_token_and_the_same_result(model: VllmModel) -> None:
    deltas, end = await run(model, completion("abcd", stream=True))
    assert [(delta.text, delta.num_tokens, delta.finish_reason) for delta in deltas] == [
        ("x", 1, None),
        ("x", 1, None),
        ("x", 1, "length"),
    ]
    assert end.result.choices[0].text == "xxx"
    assert end.usage.counts == {"prompt_tokens": 4, "completion_tokens": 3, "cached_tokens": 2, "reasoning_tokens": 0}


async def test_choices_of_many_prompts_keep_their_index_and_a_prompt_counts_once(model: VllmModel) -> None:
    deltas, end = await run(model, completion("ab", "abcd", stream=True, n=2, echo=True))
    assert {delta.choice for delta in deltas} == {0, 1, 2, 3}
    assert [choice.text for choice in end.result.choices] == ["abxxx", "abxxx", "abcdxxx", "abcdxxx"]
    assert end.usage.counts == {"prompt_tokens": 6, "completion_tokens": 12, "cached_tokens": 4, "reasoning_tokens": 0}


async def test_a_conversation_is_rendered_and_tokenized_here(model: VllmModel, engine: FakeEngine) -> None:
    wanted = ChatInput(messages=(ChatMessage(role="user", content="hi"),), params=SamplingParams(max_tokens=1))
    _, end = await run(model, wanted)
    assert end.usage.counts["prompt_tokens"] > 2
    assert list(engine.asked) == ["r-0"]


async def test_every_parameter_reaches_the_engine_and_the_models_defaults_fill_the_rest(
    model: VllmModel, engine: FakeEngine
) -> None:
    await run(
        model,
        completion(
            "ab",
            n=2,
            max_tokens=5,
            min_tokens=2,
            top_p=0.5,
            min_p=0.1,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            repetition_penalty=1.3,
            logit_bias=((3, 1.5),),
            seed=-1,
            stop=("z",),
            stop_token_ids=(9,),
            num_top_logprobs=4,
        ),
    )
    first, second = engine.asked["r-0"], engine.asked["r-1"]
    assert first == {
        "max_tokens": 5,
        "min_tokens": 2,
        "temperature": 0.6,
        "top_p": 0.5,
        "top_k": 20,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.3,
        "logit_bias": {3: 1.5},
        "seed": 2**62 - 1,  # to vLLM -1 is none
        "stop": ["z"],
        "stop_token_ids": [9, EOS_ID],
        "ignore_eos": True,
        "logprobs": 4,
        "detokenize": True,
        "skip_special_tokens": True,
    }
    assert second == {**first, "seed": 0}


async def test_a_request_without_a_seed_gives_none_and_ignore_eos_leaves_no_end(
    model: VllmModel, engine: FakeEngine
) -> None:
    await run(model, completion("ab", ignore_eos=True, max_tokens=2, min_tokens=9))
    asked = engine.asked["r-0"]
    assert (asked["seed"], asked["stop_token_ids"], asked["min_tokens"]) == (None, None, 2)


def with_adapters(**folders: Path) -> VllmOptions:
    options = VllmOptions.model_validate({"lora": {"adapters": {n: f"file:{path}" for n, path in folders.items()}}})
    resolved = resolve_refs(options, lambda ref: Path(ref.source.removeprefix("file:")))
    assert isinstance(resolved, VllmOptions)
    return resolved


def adapter_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    written = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(written))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


async def test_adapters_come_and_go_by_name_and_are_numbered_anew(
    model: VllmModel, engine: FakeEngine, tmp_path: Path
) -> None:
    sql, law = adapter_folder(tmp_path / "sql"), adapter_folder(tmp_path / "law")
    asked = CompletionInput(prompts=("a",), params=SamplingParams(max_tokens=1), adapter="sql")
    with pytest.raises(ModelNotFound):
        model.prepare(request(asked))
    model.adjust(with_adapters(sql=sql))
    await run(model, asked)
    model.adjust(with_adapters(sql=sql, law=law))
    await run(model, asked)
    before = model.prepare(request(asked))
    model.adjust(with_adapters(law=law))
    with pytest.raises(ModelNotFound):
        model.prepare(request(asked))
    assert before[0].adapter == "sql 1"
    model.adjust(with_adapters(sql=sql))
    await run(model, asked)
    await run(model, CompletionInput(prompts=("a",), params=SamplingParams(max_tokens=1)))
    assert engine.adapters == ["sql 1", "sql 1", "sql 3", None]


def test_an_adapter_that_vllm_would_misread_is_refused_and_the_others_stay(model: VllmModel, tmp_path: Path) -> None:
    sql = adapter_folder(tmp_path / "sql")
    model.adjust(with_adapters(sql=sql))
    with pytest.raises(ConfigError, match="DoRA"):
        model.adjust(with_adapters(dora=adapter_folder(tmp_path / "dora", use_dora=True)))
    model.prepare(request(CompletionInput(prompts=("a",), params=SamplingParams(max_tokens=1), adapter="sql")))


def test_what_does_not_fit_is_refused_before_the_engine(model: VllmModel, engine: FakeEngine) -> None:
    with pytest.raises(ContextLengthExceeded):
        model.prepare(request(completion("a" * 80)))
    assert not engine.asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("trouble", "expected"), [(Dead(), DeviceLost), (Refused("no"), InvalidRequest), (KeyError("bug"), KeyError)]
)
async def test_an_engines_trouble_is_told_apart(
    model: VllmModel, engine: FakeEngine, trouble: Exception, expected: type[Exception], stream: bool
) -> None:
    engine.trouble = trouble
    with pytest.raises(expected):
        await run(model, completion("a", stream=stream))


@pytest.mark.parametrize("n", [1, 3])
async def test_leaving_a_stream_aborts_all_its_choices_at_once(model: VllmModel, engine: FakeEngine, n: int) -> None:
    engine.gate.clear()
    asked = request(completion("a", stream=True, n=n))
    first = asyncio.Event()
    running = asyncio.create_task(model.run(asked, model.prepare(asked), lambda _: first.set()))
    await first.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(engine.aborted) == sorted(engine.closed) == [f"r-{choice}" for choice in range(n)]


async def test_what_the_engine_refuses_at_once_is_told_apart_too(model: VllmModel, engine: FakeEngine) -> None:
    engine.start_trouble = Refused("too many stop strings")
    with pytest.raises(InvalidRequest, match="too many stop strings"):
        await run(model, completion("a", stream=True, n=2))
    assert list(engine.asked) == ["r-0"]


async def test_an_abort_that_fails_does_not_hide_why_the_request_has_ended(
    model: VllmModel, engine: FakeEngine
) -> None:
    engine.trouble, engine.abort_trouble = Dead(), Dead()
    with pytest.raises(DeviceLost):
        await run(model, completion("a", stream=True, n=2))


async def test_a_choice_that_is_over_is_not_aborted(model: VllmModel, engine: FakeEngine) -> None:
    await run(model, completion("a", stream=True, n=2))
    assert engine.aborted == []


async def test_one_failing_choice_ends_the_others(model: VllmModel, engine: FakeEngine) -> None:
    engine.trouble = KeyError("bug")
    with pytest.raises(KeyError):
        await run(model, completion("a", stream=True, n=3))
    assert len(engine.closed) == len(engine.asked)


# One choice.


def collector(num_top: int | None = None, *, stream: bool = True) -> ChoiceCollector:
    """A collector of letters."""
    return ChoiceCollector(choice=0, stream=stream, num_top_logprobs=num_top, token_bytes=lambda token: bytes([token]))


def test_tokens_without_text_are_sent_with_the_next_text() -> None:
    choice = collector()
    assert choice.add(Made(text="")) is None
    delta = choice.add(Made(text="\u00fc"))
    assert delta is not None
    assert (delta.text, delta.num_tokens) == ("\u00fc", 2)


def test_the_end_is_sent_even_without_text() -> None:
    delta = collector().add(Made(text="", finish_reason="stop", stop_reason=EOS_ID))
    assert delta is not None
    assert (delta.text, delta.num_tokens, delta.finish_reason) == ("", 1, "stop")


def row(**logprobs: float) -> dict[int, Any]:
    """One place's alternatives, by letter."""
    return {ord(letter): SimpleNamespace(logprob=value, rank=1) for letter, value in logprobs.items()}


def test_alternatives_are_sorted_and_the_chosen_token_is_no_extra_one() -> None:
    choice = collector(2)
    delta = choice.add(Made(text="C", token_ids=[ord("C")], logprobs=[row(C=-3.0, B=-2.0, A=-1.0)]))
    assert delta is not None
    (found,) = delta.logprobs
    assert (found.chosen.text, found.chosen.logprob) == ("C", -3.0)
    assert [top.text for top in found.top] == ["A", "B"]


def test_an_end_token_has_no_logprob_and_a_stop_strings_tokens_have() -> None:
    ended = collector(0, stream=False)
    ended.add(Made(token_ids=[65, EOS_ID], logprobs=[row(A=-1.0), {}], finish_reason="stop", stop_reason=EOS_ID))
    assert len(ended.result().logprobs) == 1
    stopped = collector(0, stream=False)
    stopped.add(Made(token_ids=[65, 66], logprobs=[row(A=-1.0), row(B=-1.0)], finish_reason="stop", stop_reason="B"))
    assert len(stopped.result().logprobs) == 2


def test_an_aborted_choice_fails() -> None:
    with pytest.raises(StepFailed):
        collector().add(Made(finish_reason="abort"))


# Options.

KNOWN = (
    "model generation_config disable_log_stats max_logprobs kv_cache_memory_bytes enable_sleep_mode dtype seed "
    "gpu_memory_utilization enable_lora max_loras block_size tensor_parallel_size"
).split()


def arguments(**options: Any) -> dict[str, Any]:
    """What an engine is started with."""
    return engine_arguments(VllmOptions.model_validate(options), Path("/m"), known=KNOWN, model_name="m")


def test_options_become_arguments_and_what_is_not_said_is_left_to_vllm() -> None:
    found = arguments(kv_cache_bytes=5, tensor_parallel_size=2, engine_args={"seed": 3})
    assert (found["model"], found["kv_cache_memory_bytes"], found["tensor_parallel_size"]) == ("/m", 5, 2)
    assert found["seed"] == 3
    assert found["generation_config"] == "vllm"
    assert not {"quantization", "max_model_len", "speculative_config", "max_loras"} & found.keys()


def test_lora_options_become_vllms_and_ranks_are_those_it_makes_room_for() -> None:
    found = arguments(lora={"adapters": {"sql": "file:/sql"}, "max_adapters": 2, "max_rank": 9})
    assert (found["enable_lora"], found["max_loras"], found["max_lora_rank"]) == (True, 2, 16)
    with pytest.raises(ConfigError, match="rank 512 at most"):
        arguments(lora={"max_rank": 600})
    with pytest.raises(ConfigError, match=r"options\.lora\.max_adapters"):
        arguments(engine_args={"max_loras": 3})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blok_size", "Did you mean 'block_size'"),
        ("tokenizer", "can't be set here"),
        ("tensor_parallel_size", "Set options.tensor_parallel_size instead"),
    ],
)
def test_an_argument_that_would_be_ignored_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"models.m.options.engine_args.{name}: .*{said}"):
        arguments(engine_args={name: 1})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError):
        VllmOptions.model_validate({"tensor_parallel": 2})


# Metrics.


def test_counts_add_up_over_steps_and_ranks() -> None:
    counts = EngineCounts()
    iteration = SimpleNamespace(num_prompt_tokens=10, num_generation_tokens=2, num_preempted_reqs=1)
    scheduler = SimpleNamespace(
        num_running_reqs=3,
        num_waiting_reqs=1,
        kv_cache_usage=0.5,
        prefix_cache_stats=SimpleNamespace(queries=10, hits=4),
        spec_decoding_stats=SimpleNamespace(num_draft_tokens=4, num_accepted_tokens=3),
    )
    counts.record(scheduler, iteration, 0)
    counts.record(scheduler, None, 1)
    counts.record(None, iteration, 0)
    found = counts.stats()
    assert found.keys() == {spec.name for spec in METRICS} - {"kv_blocks_total", "dormant"}
    assert (found["prompt_tokens_total"], found["engine_preemptions_total"]) == (20, 2)
    assert (found["engine_requests_running"], found["engine_requests_waiting"]) == (6, 2)
    assert (found["prefix_cache_hits_total"], found["spec_decode_accepted_tokens_total"]) == (8, 6)
    assert found["kv_cache_usage_perc"] == 0.5
    idle = counts.stats(idle=True)
    assert (idle["kv_cache_usage_perc"], idle["engine_requests_running"], idle["prompt_tokens_total"]) == (0, 0, 20)


# Sleep.


class Sleeper:
    """Records what a `Wakefulness` does; its timer is rung by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.rings: list[Any] = []
        self.awake = Wakefulness(sleep=self._sleep, wake_up=self._wake_up, after_s=5.0)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    async def _sleep(self) -> None:
        self.done.append("sleep")

    async def _wake_up(self) -> None:
        self.done.append("wake up")

    def _call_later(self, delay_s: float, ring: Any) -> Any:
        assert delay_s == 5.0
        self.rings.append(ring)
        return SimpleNamespace(cancel=lambda: self.rings.remove(ring))

    async def ring(self) -> None:
        self.rings.pop()()
        for _ in range(3):
            await asyncio.sleep(0)


async def test_an_idle_model_sleeps_and_the_next_request_wakes_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Sleeper(monkeypatch)
    await sleeper.awake.enter()
    sleeper.awake.leave()
    states: list[bool] = []
    sleeper.awake.on_change = lambda: states.append(sleeper.awake.asleep)
    await sleeper.ring()
    assert sleeper.awake.asleep
    await asyncio.gather(sleeper.awake.enter(), sleeper.awake.enter())
    assert sleeper.done == ["sleep", "wake up"]
    assert states == [True, False]


async def test_a_busy_model_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Sleeper(monkeypatch)
    await sleeper.awake.enter()
    await sleeper.awake.enter()
    sleeper.awake.leave()
    assert not sleeper.rings
    sleeper.awake.leave()
    await sleeper.awake.enter()  # in time
    assert not sleeper.rings
    assert not sleeper.done


async def test_an_engine_that_died_in_its_sleep_is_replaced(
    engine: FakeEngine, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep() -> None:
        """Falls asleep."""

    async def wake_up() -> None:
        raise Dead

    awake = Wakefulness(sleep=sleep, wake_up=wake_up, after_s=0.0)
    model = make_model(engine, codec, wakefulness=awake)
    asleep = asyncio.Event()
    awake.on_change = asleep.set
    await run(model, completion("a"))
    await asleep.wait()
    with pytest.raises(DeviceLost):
        await run(model, completion("a"))


SCHEMA = GrammarSpec(kind="json_schema", text='{"type": "object"}')
TOOL = ToolSpec(name="look_up", parameters={"type": "object", "properties": {"word": {"type": "string"}}})


def chat(**fields: Any) -> ChatInput:
    """A conversation of one turn."""
    params = SamplingParams(max_tokens=1, grammar=fields.pop("grammar", None))
    return ChatInput(messages=(ChatMessage(role="user", content="hi"),), params=params, **fields)


async def test_a_form_reaches_the_engine_in_the_notation_of_its_backend(engine: FakeEngine, codec: TextCodec) -> None:
    model = make_model(engine, codec, max_model_len=1024)
    await run(model, chat())
    await run(model, chat(grammar=SCHEMA))
    await run(model, chat(grammar=GrammarSpec(kind="regex", text="[ab]+")))
    await run(model, chat(tools=(TOOL,), must_call=True))
    free, schema, regex, call = engine.forms
    assert free is None
    assert schema is not None and json.loads(schema["json"])["type"] == "object"
    assert regex == {"grammar": "start: /[ab]+/"}
    assert call is not None and "look_up" in call["grammar"] and "<tool_call>" in call["grammar"]


async def test_a_tool_that_may_be_called_leaves_the_answer_free(engine: FakeEngine, codec: TextCodec) -> None:
    model = make_model(engine, codec, max_model_len=1024)
    await run(model, chat(tools=(TOOL,)))
    assert engine.forms == [None]


def test_a_form_that_the_engine_can_not_hold_is_refused(engine: FakeEngine, codec: TextCodec) -> None:
    model, thinking = make_model(engine, codec), make_model(engine, codec, thinks=True)
    with pytest.raises(InvalidRequest, match="either calls or a form") as either:
        model.prepare(request(chat(tools=(TOOL,), grammar=SCHEMA)))
    assert either.value.param == "tools"
    with pytest.raises(InvalidRequest, match="marks its reasoning") as after:
        thinking.prepare(request(chat(grammar=SCHEMA)))
    assert after.value.param == "response_format"


def test_prompts_of_other_processes_are_refused_since_vllm_is_not_told_of_them(model: VllmModel) -> None:
    with pytest.raises(InvalidRequest, match="not passed to vLLM") as refused:
        model.prepare(request(chat(kv_transfer=KvTransferParams(wants_handle=True))))
    assert refused.value.param == "kv_transfer_params"


def test_log_probabilities_of_prompts_and_images_are_refused_by_name(model: VllmModel) -> None:
    with pytest.raises(InvalidRequest, match="not served by vLLM") as refused:
        model.prepare(request(completion("ab", echo=True, num_top_logprobs=1)))
    assert refused.value.param == "echo"
    shown = ChatMessage(role="user", content="", parts=(ImagePart(data=b"", param="messages.0.content.0"),))
    with pytest.raises(InvalidRequest, match="reads text only") as refused:
        model.prepare(request(ChatInput(messages=(shown,))))
    assert refused.value.param == "messages.0.content.0"


async def test_blocks_are_shared_within_a_key_and_a_salt_only(model: VllmModel, engine: FakeEngine) -> None:
    for tenant, salt in (("a", None), ("a", None), ("b", None), ("a", "s")):
        asked = dataclasses.replace(request(chat(cache_salt=salt)), tenant=tenant)
        await model.run(asked, model.prepare(asked), lambda _: None)
    first, again, other_key, other_salt = engine.cache_salts
    assert first == again
    assert len({first, other_key, other_salt, None}) == 4
