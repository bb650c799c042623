"""Whisper's decoder at fixed places, with random weights, beside the generation of transformers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationMixin,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from sixfold.core.memory.need import MemoryQuestion
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.asr.decoded import Decoded
from sixfold.plugins.asr.decoder_memory import DecoderSize
from sixfold.plugins.asr.memory_need import transformers_need
from sixfold.plugins.asr.options import TransformersOptions
from sixfold.plugins.asr.static_decoder import StaticDecoder
from sixfold.plugins.asr.token_search import Search, TokenRules
from tests.dry_capture import dry_capture

END, START, LANGUAGE, TASK, SILENCE, NO_TIMES, FIRST_TIME = range(40, 47)
VOCABULARY = FIRST_TIME + 31
PLACES, LENGTH = 12, 80
GIB = 1 << 30
NEVER = (START, LANGUAGE, TASK, SILENCE, 3)
BEGIN = (START, LANGUAGE, TASK)

_generate: Any = cast("Any", GenerationMixin).generate
_processors: Any = (
    SuppressTokensLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products as small as these only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    transformers.set_seed(3)
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=PLACES,
        max_target_positions=LENGTH,
        vocab_size=VOCABULARY,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        init_std=0.4,
    )
    library: Any = transformers.WhisperForConditionalGeneration
    found = library(config).eval()
    with torch.no_grad():  # texts that end by themselves are some of those that are told apart below
        found.model.decoder.embed_tokens.weight[END] *= 1.3
    return found


def heard(num_windows: int) -> Tensor:
    return 2.0 * torch.randn(num_windows, PLACES, 32, generator=torch.Generator().manual_seed(2))


def decoder_of(model: Any, *, beams: int, capture: Capture | None = None) -> StaticDecoder:
    rules = TokenRules(
        end=END, first_time=FIRST_TIME, max_first_time=FIRST_TIME + 9, vocabulary=VOCABULARY, device=model.device
    )
    return StaticDecoder(model, rules, no_speech=SILENCE, max_beams=beams, capture=capture)


@torch.inference_mode()
def decode(
    decoder: StaticDecoder,
    hidden: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    search: Search,
    beams: int,
    limit: int = LENGTH,
    temperature: float = 0.0,
) -> list[list[Decoded]]:
    return decoder.decode(
        hidden,
        prompts,
        start=list(prompts[0]).index(START),
        limit=limit,
        search=search,
        beams=beams,
        temperature=temperature,
        never=(*NEVER, NO_TIMES),
    )


@torch.inference_mode()
def of_library(model: Any, hidden: Tensor, prompts: Sequence[Sequence[int]], *, beams: int, limit: int) -> Any:
    """Ids behind the prompt, without the end and what follows it."""
    given = torch.tensor([list(prompt) for prompt in prompts])
    settings = SimpleNamespace(
        no_timestamps_token_id=NO_TIMES, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=9
    )
    suppress, at_begin, times = _processors
    found = _generate(
        model,
        encoder_outputs=BaseModelOutput(last_hidden_state=cast("Any", hidden)),
        decoder_input_ids=given,
        logits_processor=LogitsProcessorList(
            [suppress([*NEVER]), at_begin([5, END], given.shape[1]), times(settings, begin_index=given.shape[1])]
        ),
        max_length=limit,
        eos_token_id=END,
        pad_token_id=END,
        num_beams=beams,
        do_sample=False,
    )
    texts = [row[given.shape[1] :].tolist() for row in found]
    return [tuple(text[: text.index(END)] if END in text else text) for text in texts]


@torch.inference_mode()
def judged(model: Any, hidden: Tensor, prompt: Sequence[int], text: Sequence[int], *, limit: int) -> float:
    """The sum of log probabilities of a text and its end, by one pass over all of it."""
    ended = [*text, END][: limit - len(prompt)]
    ids = torch.tensor([[*prompt, *ended]])
    logits = model(decoder_input_ids=ids, encoder_outputs=BaseModelOutput(last_hidden_state=cast("Any", hidden[None])))
    logprobs = logits.logits[0].log_softmax(dim=-1)
    return float(sum(logprobs[len(prompt) - 1 + at, token] for at, token in enumerate(ended)))


def replayed(call: Callable[[], None]) -> Callable[[], None]:
    """As a graph is recorded: the call has run once before, and once more."""
    call()
    call()
    return call


PROMPTS: dict[str, list[tuple[int, ...]]] = {
    "bare": [BEGIN] * 5,
    "told": [(7, 8, 9, number, 11, *BEGIN) for number in range(5)],
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("limit", [LENGTH, 17])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("capture", [None, replayed])
def test_texts_are_the_librarys_whatever_shares_their_batch(
    model: Any, kind: str, limit: int, beams: int, capture: Capture | None
) -> None:
    hidden, prompts = heard(5), PROMPTS[kind]
    decoder = decoder_of(model, beams=beams, capture=capture)
    search: Search = "beams" if beams > 1 else "likeliest"
    expected = of_library(model, hidden, prompts, beams=beams, limit=limit)
    assert len(set(expected)) > 1
    for part in (slice(0, 5), slice(2, 3), slice(1, 4)):
        texts = decode(decoder, hidden[part], prompts[part], search=search, beams=beams, limit=limit)
        assert [one.token_ids for (one,) in texts] == expected[part]
        for row, prompt, (one,) in zip(hidden[part], prompts[part], texts, strict=True):
            total = judged(model, row, prompt, one.token_ids, limit=limit)
            assert one.total_logprob == pytest.approx(total, abs=1e-3)


def test_the_probability_of_silence_is_the_one_behind_the_start_token(model: Any) -> None:
    hidden = heard(2)
    (first,), (second,) = decode(decoder_of(model, beams=1), hidden, [(7, 8, *BEGIN)] * 2, search="likeliest", beams=1)
    with torch.inference_mode():
        logits = model(
            decoder_input_ids=torch.tensor([[7, 8, START]] * 2),
            encoder_outputs=BaseModelOutput(last_hidden_state=cast("Any", hidden)),
        ).logits
    expected = logits[:, -1].softmax(dim=-1)[:, SILENCE].tolist()
    assert [first.silence, second.silence] == pytest.approx(expected, abs=1e-5)


def test_drawn_texts_of_a_window_differ_and_know_how_likely_they_are(model: Any) -> None:
    hidden = heard(2)
    transformers.set_seed(1)
    texts = decode(decoder_of(model, beams=3), hidden, [BEGIN] * 2, search="drawn", beams=3, temperature=1.0)
    for row, drawn in zip(hidden, texts, strict=True):
        assert len({one.token_ids for one in drawn}) == 3
        for one in drawn:
            assert one.total_logprob == pytest.approx(judged(model, row, BEGIN, one.token_ids, limit=LENGTH), abs=1e-3)


def test_drawing_at_next_to_no_temperature_takes_the_likeliest(model: Any) -> None:
    hidden, decoder = heard(3), decoder_of(model, beams=2)
    likeliest = decode(decoder, hidden, [BEGIN] * 3, search="likeliest", beams=1)
    drawn = decode(decoder, hidden, [BEGIN] * 3, search="drawn", beams=2, temperature=1e-6)
    for (expected,), texts in zip(likeliest, drawn, strict=True):
        assert [one.token_ids for one in texts] == [expected.token_ids] * 2


def test_what_is_no_number_stays_with_its_window(model: Any) -> None:
    hidden = heard(3)
    decoder = decoder_of(model, beams=1, capture=replayed)
    expected = decode(decoder, hidden, [BEGIN] * 3, search="likeliest", beams=1)
    spoiled = hidden.clone()
    spoiled[1] = torch.nan
    beside = decode(decoder, spoiled, [BEGIN] * 3, search="likeliest", beams=1)
    assert [beside[0], beside[2]] == [expected[0], expected[2]]
    assert decode(decoder, hidden, [BEGIN] * 3, search="likeliest", beams=1) == expected


def test_what_is_no_number_stays_with_its_request_where_the_next_has_another_shape(model: Any) -> None:
    decoder = decoder_of(model, beams=2, capture=replayed)
    hidden = heard(2)
    expected = decode(decoder_of(model, beams=2, capture=replayed), hidden, [BEGIN] * 2, search="beams", beams=2)
    decode(decoder, torch.full_like(hidden, torch.nan), [BEGIN] * 2, search="likeliest", beams=1)
    assert decode(decoder, hidden, [BEGIN] * 2, search="beams", beams=2) == expected


def test_steps_of_all_sizes_are_recorded_before_the_first_request(model: Any) -> None:
    recorded: list[Callable[[], None]] = []

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        recorded.append(call)
        return replayed(call)

    decoder = decoder_of(model, beams=2, capture=capture)
    with torch.inference_mode():
        decoder.record("beams", 2)
    num_recorded = len(recorded)
    assert decoder.max_windows == 32
    for num_windows in (1, 3, 32):
        decode(decoder, heard(num_windows), [BEGIN] * num_windows, search="beams", beams=2)
    assert len(recorded) == num_recorded


@pytest.mark.parametrize(("search", "beams"), [("likeliest", 1), ("drawn", 2), ("beams", 3)])
@torch.inference_mode()
def test_a_graph_can_record_every_step(model: Any, search: Search, beams: int) -> None:
    on_a_gpu = copy.deepcopy(model).to("meta")
    decoder = decoder_of(on_a_gpu, beams=beams, capture=dry_capture)
    decoder.max_windows = 2
    decoder.record(search, beams)
    assert len(vars(decoder)["_steps"]) == 4  # one and two windows, 64 and 80 places


def test_windows_are_as_many_as_fit_the_caches() -> None:
    large = DecoderSize(layers=32, width=1280, heard=1500, length=448, itemsize=2, total_bytes=80 * GIB)
    assert large.max_windows(beams=1) == 16
    assert large.max_windows(beams=5) == 8
    assert large.cache_bytes(beams=5) == 8 * large.window_bytes(beams=5) < 6 * GIB
    assert dataclasses.replace(large, total_bytes=12 * GIB).max_windows(beams=5) == 4
    base = DecoderSize(layers=6, width=512, heard=1500, length=448, itemsize=2, total_bytes=80 * GIB)
    assert base.max_windows(beams=5) == 32


def test_the_caches_are_counted_before_a_model_is_loaded_on_a_gpu(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    options = TransformersOptions(beam_size=3, best_of=4)

    def need(device: str) -> int:
        asked = MemoryQuestion(
            path=tmp_path,
            options=options,
            device=device,
            num_threads=1,
            total_bytes=GIB,
            free_bytes=GIB,
            has_bfloat16=True,
        )
        return transformers_need(asked).working_bytes

    size = DecoderSize(layers=3, width=32, heard=PLACES, length=LENGTH, itemsize=2, total_bytes=GIB)
    assert need("cuda:0") - need("cpu") > size.cache_bytes(beams=4) == 32 * size.window_bytes(beams=4) > 0
