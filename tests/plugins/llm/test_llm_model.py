"""What a request can ask of the runtime, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sixfold.core.batching.model import Granted
from sixfold.core.errors import ConfigError, ContextLengthExceeded, InvalidRequest, RequestError, StepFailed
from sixfold.core.messages import Request
from sixfold.plugins.llm import step_launcher
from sixfold.plugins.llm.generation import ChatInput, ChatMessage, CompletionInput, SamplingParams
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.plugin import FAMILY
from sixfold.plugins.llm.sampler import begin_sample
from sixfold.plugins.llm.text_codec import TextCodec

Run = Callable[..., list[Any]]


def completion(prompt: str | tuple[int, ...] = "abc", **params: Any) -> CompletionInput:
    fields: dict[str, Any] = {"max_tokens": 12} | params
    return CompletionInput(prompts=(prompt,), params=SamplingParams(**fields), stream=True)


def chat_input(content: str = "Hi", **more: Any) -> ChatInput:
    return ChatInput(messages=(ChatMessage(role="user", content=content),), **more)


def request_of(item: ChatInput | CompletionInput) -> Request[ChatInput | CompletionInput]:
    return Request(request_id="r", input=item, arrived_s=0.0)


def embedding_table(model: Any) -> torch.Tensor:
    table: torch.Tensor = model._decoder._model.get_input_embeddings().weight
    return table


@pytest.fixture(scope="module")
def codec(model_folder: Callable[[str], Path]) -> TextCodec:
    """The tiny models' tokenizer."""
    return TextCodec.load(model_folder("llama"))


def text_of(driven: Any) -> str:
    return str(driven.texts[0])


def test_the_deltas_of_each_choice_add_up_to_its_text(llama: TransformersModel, run: Run) -> None:
    item = CompletionInput(
        prompts=("one", "two"), params=SamplingParams(max_tokens=20, seed=1), num_choices=3, stream=True
    )
    (driven,) = run(llama, [item], seed=2)
    assert len(driven.texts) == 6
    for index, text in enumerate(driven.texts):
        deltas = [d for d in driven.deltas if d.choice == index]
        assert "".join(d.text for d in deltas) == text
        assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == driven.generation.choices[index].finish_reason
    counts = driven.finish.usage.counts
    assert counts["prompt_tokens"] == len("one") + len("two")
    assert counts["completion_tokens"] == sum(d.num_tokens for d in driven.deltas)


def test_a_request_that_is_not_streamed_has_no_increments(llama: TransformersModel, run: Run) -> None:
    (driven,) = run(llama, [CompletionInput(prompts=("a",), params=SamplingParams(max_tokens=3))])
    assert driven.deltas == ()


def test_a_seed_repeats_an_answer_in_any_company(llama: TransformersModel, run: Run) -> None:
    item = completion(seed=11, temperature=1.3, top_p=0.9)
    (alone,) = run(llama, [item])
    crowd = run(llama, [item, *(completion(f"x{i}", seed=i) for i in range(6)), item], seed=4)
    assert text_of(crowd[0]) == text_of(crowd[-1]) == text_of(alone)
    choices = run(llama, [CompletionInput(prompts=("abc",), params=item.params, num_choices=4)])[0].texts
    assert choices[0] == text_of(alone)
    assert len(set(choices)) > 1


def test_a_stop_string_ends_the_answer_before_it(llama: TransformersModel, run: Run) -> None:
    (free,) = run(llama, [completion(temperature=0, ignore_eos=True, max_tokens=30)])
    stop = text_of(free)[5:8]
    (stopped,) = run(llama, [completion(temperature=0, ignore_eos=True, max_tokens=30, stop=(stop, "never"))])
    assert text_of(stopped) == text_of(free)[: text_of(free).index(stop)]
    assert stopped.generation.choices[0].finish_reason == "stop"
    assert "".join(d.text for d in stopped.deltas) == text_of(stopped)


def test_a_stop_token_ends_the_answer_without_its_text(llama: TransformersModel, run: Run, codec: TextCodec) -> None:
    (free,) = run(llama, [completion(temperature=0, num_top_logprobs=0, ignore_eos=True)])
    raws = [t.chosen.raw for t in free.generation.choices[0].logprobs]
    third = [i for i in range(256) if codec.token_bytes(i) == raws[2]]
    (stopped,) = run(llama, [completion(temperature=0, stop_token_ids=tuple(third), ignore_eos=True)])
    assert stopped.finish.usage.counts["completion_tokens"] == raws.index(raws[2]) + 1
    assert stopped.finish.finish_reason == "stop"


def test_the_limit_gives_the_reason_length(llama: TransformersModel, run: Run) -> None:
    (driven,) = run(llama, [completion(max_tokens=4, ignore_eos=True)])
    assert driven.finish.finish_reason == "length"
    assert driven.finish.usage.counts["completion_tokens"] == 4


def test_without_a_limit_the_context_is_one(llama: TransformersModel, run: Run) -> None:
    limit = llama.info.max_model_len or 0
    (driven,) = run(llama, [completion(tuple([5] * 10), max_tokens=None, ignore_eos=True)])
    assert driven.finish.usage.counts["completion_tokens"] == limit - 10


def test_end_tokens_end_the_answer_unless_ignored(llama: TransformersModel, run: Run) -> None:
    biased: dict[str, Any] = {"temperature": 0, "logit_bias": ((257, 100.0),)}
    (ended,) = run(llama, [completion(**biased)])
    assert ended.finish.usage.counts["completion_tokens"] == 1
    assert text_of(ended) == ""
    assert ended.deltas[-1].finish_reason == "stop"
    (later,) = run(llama, [completion(**biased, min_tokens=3)])
    assert later.finish.usage.counts["completion_tokens"] == 4
    (ignored,) = run(llama, [completion(**biased, ignore_eos=True)])
    assert ignored.finish.usage.counts["completion_tokens"] == 12


def test_echo_puts_the_prompt_before_each_answer(llama: TransformersModel, run: Run, codec: TextCodec) -> None:
    item = CompletionInput(
        prompts=("héllo", (104, 105)), params=SamplingParams(max_tokens=2, temperature=0), stream=True, echo=True
    )
    (driven,) = run(llama, [item])
    assert driven.texts[0].startswith("héllo")
    assert driven.texts[1].startswith(codec.decode([104, 105]))
    assert "".join(d.text for d in driven.deltas if d.choice == 0) == driven.texts[0]


def test_logprobs_come_with_their_text(llama: TransformersModel, run: Run) -> None:
    (driven,) = run(llama, [completion(temperature=0, num_top_logprobs=2, ignore_eos=True)])
    all_logprobs = driven.generation.choices[0].logprobs
    assert len(all_logprobs) == 12
    assert [p for d in driven.deltas for p in d.logprobs] == list(all_logprobs)
    for entry in all_logprobs:
        assert len(entry.top) == 2
        assert entry.chosen.logprob == entry.top[0].logprob <= 0


def test_the_chat_template_of_the_model_is_used(llama: TransformersModel, run: Run, codec: TextCodec) -> None:
    request = request_of(chat_input("Hé", template_kwargs={"opening": "Well"}))
    (sequence,) = llama.prepare(request, llama.split(request)[0])
    expected = "<s>user\nHé</s>\n<s>assistant\nWell"
    assert sequence.num_prompt_tokens == len(codec.encode(expected, add_special_tokens=False))


@pytest.mark.parametrize(
    ("item", "param", "kind"),
    [
        (completion(tuple([1] * 256)), "prompt", ContextLengthExceeded),
        (completion(tuple([1] * 200), max_tokens=57), "prompt", ContextLengthExceeded),
        (chat_input("x" * 300), "messages", ContextLengthExceeded),
        (completion((999,)), "prompt", InvalidRequest),
        (completion(""), "prompt", InvalidRequest),
        (completion(logit_bias=((260, 1.0),)), "logit_bias", InvalidRequest),
        (completion(stop_token_ids=(260,)), "stop_token_ids", InvalidRequest),
        (ChatInput(messages=(ChatMessage(role="odd", content="x"),)), "messages", InvalidRequest),
        (chat_input(template_kwargs={"tokenize": True}), "chat_template_kwargs.tokenize", InvalidRequest),
    ],
)
def test_bad_input_is_the_clients_error(
    item: Any, param: str, kind: type[RequestError], llama: TransformersModel, error_of: Callable[..., Any]
) -> None:
    error = error_of(llama, item)
    assert type(error) is kind
    assert error.param == param


def test_an_estimate_is_near_the_work(llama: TransformersModel) -> None:
    request = request_of(completion("word " * 20, max_tokens=30))
    assert 30 < llama.estimate_units(request) <= 60


def test_a_failed_step_changes_nothing_and_can_be_repeated(
    llama: TransformersModel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = completion(seed=5)
    (expected,) = run(llama, [item])
    request = request_of(item)
    (sequence,) = llama.prepare(request, llama.split(request)[0])
    fail = iter([True, False] * 100)
    real = begin_sample

    def sometimes(logits: torch.Tensor, rows: Sequence[Any], masks: Any, unknown: Any) -> Any:
        tokens = real(logits, rows, masks, unknown)
        if next(fail):
            raise RuntimeError("out of luck")
        return tokens

    monkeypatch.setattr(step_launcher, "begin_sample", sometimes)
    done = False
    while not done:
        cost = llama.cost(sequence)
        assert cost is not None
        units = llama.reserve(sequence, cost.units)
        with pytest.raises(RuntimeError):
            llama.step([Granted(sequence, units)])
        (outcome,) = llama.step([Granted(sequence, units)])
        done = outcome.done
    llama.release(sequence)
    assert sequence.text == text_of(expected)


def test_a_model_that_gives_nan_fails_its_request_and_poisons_no_later_one(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run, error_of: Callable[..., Any]
) -> None:
    model = load_tiny(model_folder("llama"), kv_cache_bytes=60_000)
    item = completion((1, 2, 3, 4, 5), temperature=0)
    (before,) = run(model, [item])
    table = embedding_table(model)
    with torch.no_grad():
        kept = table[200].clone()
        table[200] = torch.nan
    for _ in range(3):
        error = error_of(model, completion(tuple([200] * 100)))
        assert isinstance(error, StepFailed)
    with torch.no_grad():
        table[200] = kept
    (after,) = run(model, [item])
    assert text_of(after) == text_of(before)


def test_a_prompt_cancelled_half_way_leaves_nothing_behind_that_later_ones_could_read(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder("llama"), kv_cache_bytes=30_000)
    item = completion((1, 2, 3, 4, 5), temperature=0)
    (before,) = run(model, [item])
    table = embedding_table(model)
    with torch.no_grad():
        kept = table[200].clone()
        table[200] = torch.nan
    request = request_of(completion(tuple([200] * 45), max_tokens=1))
    (sequence,) = model.prepare(request, model.split(request)[0])
    assert model.reserve(sequence, 40) == 40
    (outcome,) = model.step([Granted(sequence, 40)])
    assert not outcome.done
    model.release(sequence)
    with torch.no_grad():
        table[200] = kept
    assert text_of(run(model, [item])[0]) == text_of(before)


def test_metrics_count_tokens_and_blocks(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Run
) -> None:
    model = load_tiny(model_folder("llama"))
    model.warm_up()
    run(model, [completion((1, 2, 3), max_tokens=5, ignore_eos=True)])
    stats = model.stats()
    assert stats["prompt_tokens_total"] == 3
    assert stats["generation_tokens_total"] == 5
    assert stats["kv_blocks_used"] == 0
    assert stats["kv_blocks_total"] > 0
    assert set(stats) == {spec.name for spec in FAMILY.metrics}


def test_a_context_that_the_cache_can_not_hold_is_refused_with_the_size_to_set(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match="kv_cache_bytes to at least"):
        load_tiny(model_folder("llama"), max_model_len=200, kv_cache_bytes=30_000)
    with pytest.raises(ConfigError, match="exceeds the model's own limit"):
        load_tiny(model_folder("llama"), max_model_len=300)
    assert load_tiny(model_folder("llama"), kv_cache_bytes=60_000).info.max_model_len < 256
