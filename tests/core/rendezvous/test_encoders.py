"""Encoders give what their modules give: computed, or replayed where they were recorded. The recorder computes again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from sixfold.core.rendezvous.encoders import Encoders
from sixfold.core.rendezvous.scoped import PipelinePlan
from tests.core.rendezvous.harness import PLAN, PipelineModel, alone, run_together
from tests.core.rendezvous.recorder import Recorder
from tests.dry_capture import dry_recording
from tests.tiny_image_folder import stable_diffusion

CPU = torch.device("cpu")
_T: Any = transformers


class TextEncoder(torch.nn.Module):
    """Says what it was given, and in which thread; each answer is told apart by its values."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.answers: Callable[[Tensor, float], Any] = lambda ids, scale: {"states": (ids * scale,), "pooled": None}

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Any:
        self.threads.append(threading.current_thread().name)
        return self.answers(ids if mask is None else ids * mask, scale)

    def encode(self, ids: Tensor) -> Any:
        return {"twice": ids * 2}


@contextmanager
def encoders(capture: Any = None) -> Generator[Encoders]:
    found = Encoders(CPU, capture)
    try:
        yield found
    finally:
        found.close()


def ids(*values: float) -> Tensor:
    return torch.tensor([values])


def states(answer: Any) -> list[float]:
    return answer["states"][0].tolist()[0]


def test_on_a_cpu_the_calling_thread_computes() -> None:
    module = TextEncoder()
    with encoders() as here, here.recording():
        assert states(here.compute(module, (ids(1, 2),), {"scale": 3.0})) == [3, 6]
    assert module.threads == [threading.current_thread().name]
    assert here.num_recorded == 0


def test_what_was_recorded_is_replayed_for_other_values() -> None:
    module, recorder = TextEncoder(), Recorder()
    with encoders(recorder) as here:
        with here.recording():
            first = here.compute(module, (ids(1, 2),), {"mask": ids(1, 0)})
        second = here.compute(module, (ids(5, 7),), {"mask": ids(0, 1)})
        assert (states(first), states(second)) == ([1, 0], [0, 7])  # the first's values are its own
        assert first["pooled"] is None
        assert (here.num_recorded, here.num_replays) == (1, 2)


def test_calls_that_differ_in_form_have_recordings_of_their_own() -> None:
    module, recorder = TextEncoder(), Recorder()
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((ids(1, 2),), {}),
        ((ids(1, 2),), {"scale": 2.0}),
        ((ids(1, 2, 3),), {}),
        ((ids(1, 2),), {"mask": ids(1, 1)}),
        ((ids(1, 2), ids(1, 1)), {}),
        ((ids(1, 2).to(torch.float32),), {}),
    ]
    with encoders(recorder) as here:
        with here.recording():
            for args, kwargs in given:
                here.compute(module, args, kwargs)
            here.compute(module.encode, (ids(1, 2),), {})
            here.compute(TextEncoder(), (ids(1, 2),), {})
        assert here.num_recorded == len(given) + 2
        for args, kwargs in given:
            assert states(here.compute(module, args, kwargs)) == states(module(*args, **kwargs))
        assert here.compute(module.encode, (ids(4),), {})["twice"].tolist() == [[8]]  # of a form that was not seen


def test_only_a_warm_up_records() -> None:
    with encoders(Recorder()) as here:
        with here.recording():
            pass
        assert states(here.compute(TextEncoder(), (ids(3),), {})) == [3]
        assert (here.num_recorded, here.num_replays) == (0, 0)


def test_a_module_that_shall_compute_does() -> None:
    module = TextEncoder()
    with encoders(Recorder()) as here:
        with here.recording():
            here.compute(module, (ids(3),), {})
        before = here.num_replays
        module.answers = lambda given, _scale: {"states": (given + 100,)}
        assert states(here.compute(module, (ids(3),), {}, as_is=True)) == [103]
        assert here.num_replays == before


def test_one_thread_computes_the_calls_of_all() -> None:
    module = TextEncoder()
    with encoders(Recorder()) as here, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: states(here.compute(module, (ids(n),), {})), range(16)))
    assert found == [[n] for n in range(16)]
    assert {name.rsplit("_", 1)[0] for name in module.threads} == {"encode"}
    assert len(set(module.threads)) == 1


def test_an_error_of_the_module_is_the_callers() -> None:
    module = TextEncoder()

    def fail(_ids: Tensor, _scale: float) -> Any:
        raise KeyError("no such token")

    module.answers = fail
    with encoders(Recorder()) as here:
        with pytest.raises(KeyError, match="no such token"), here.recording():
            here.compute(module, (ids(1),), {})
        module.answers = lambda given, _scale: {"states": (given,)}
        assert states(here.compute(module, (ids(1),), {})) == [1]


class Frozen(Recorder):
    """Records what reads nothing anew, as a graph does that took a value from the host."""

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        call()
        return lambda: None


class Failing(Recorder):
    """Records nothing."""

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")


@dataclass
class Cache:
    """What can't be copied: it would be the same object in all answers."""

    keys: Tensor


@pytest.mark.parametrize(
    ("recorder", "answers", "why"),
    [
        (Failing(), None, "operation not permitted when stream is capturing"),
        (Frozen(), None, "replayed, it gives something else"),
        (Recorder(), lambda given, _: {"states": (given,), "cache": Cache(given)}, "dict, holds more than tensors"),
        (Recorder(), lambda given, _: {"states": (given * torch.rand(1),)}, "replayed, it gives something else"),
    ],
)
def test_what_cannot_be_recorded_is_computed_and_said_once(
    recorder: Recorder, answers: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = TextEncoder()
    module.answers = answers or module.answers
    with encoders(recorder) as here, caplog.at_level(logging.WARNING):
        with here.recording():
            for value in (1.0, 2.0):
                here.compute(module, (ids(value, 9),), {})
        module.answers = lambda given, _scale: {"states": (given,)}
        assert states(here.compute(module, (ids(3, 9),), {})) == [3, 9]
        assert (here.num_recorded, here.num_replays) == (0, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("TextEncoder can't be recorded as a CUDA graph: ") and why in said


@pytest.mark.parametrize("argument", [[1, 2], {"a": 1}, torch.zeros(1, 2, device="meta")])
def test_arguments_without_a_fixed_place_are_not_recorded(argument: Any) -> None:
    class Careless(TextEncoder):
        def forward(self, ids: Tensor, other: Any) -> Any:  # type: ignore[override]
            return {"states": (ids,)}

    with encoders(Recorder()) as here, here.recording():
        assert states(here.compute(Careless(), (ids(4), argument), {})) == [4]
        assert here.num_recorded == 0


PROMPTS = ("a red ball", "two blue boxes on the left", "", "a green star behind a wall")


async def test_pictures_of_recorded_encoders_are_the_librarys() -> None:
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)

    def work(index: int) -> Callable[[], dict[str, Any]]:
        return lambda: {
            "prompt": PROMPTS[index],
            "num_inference_steps": 2 + index % 2,
            "generator": torch.Generator().manual_seed(index),
            "output_type": "np",
        }

    works = {f"r{index}": work(index) for index in range(len(PROMPTS))}
    plan = PipelinePlan(
        batched=PLAN.batched, lanes=PLAN.lanes, aside=frozenset({"text_encoder"}), locked=frozenset({"tokenizer"})
    )
    model = PipelineModel(pipeline, works, plan=plan, encoders=Encoders(CPU, Recorder()))
    with model.encoders.recording():
        model.warm_encoders()
    assert model.encoders.num_recorded == 1
    before = model.encoders.num_replays
    assert await run_together(model) == {}
    assert model.encoders.num_replays == before + 2 * len(PROMPTS)  # the prompt, and the empty one of guidance
    for name, make in works.items():
        np.testing.assert_allclose(model.results[name], alone(pipeline, make), atol=1e-5)


def text_encoders() -> dict[str, Callable[[], Any]]:
    """The classes that most pipelines have, tiny."""
    clip = _T.CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=49,
    )
    t5 = _T.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    umt5 = _T.UMT5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    return {
        "CLIP": lambda: _T.CLIPTextModel(clip),
        "CLIP with projection": lambda: _T.CLIPTextModelWithProjection(clip),
        "T5": lambda: _T.T5EncoderModel(t5),
        "UMT5": lambda: _T.UMT5EncoderModel(umt5),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", text_encoders())
def test_text_encoders_ask_the_device_nothing(name: str, masked: bool) -> None:
    with torch.device("meta"):
        module = text_encoders()[name]().eval()
        given = torch.zeros(1, 77, dtype=torch.long)
        mask = {"attention_mask": torch.ones(1, 77, dtype=torch.long)} if masked else {}
    with torch.no_grad(), dry_recording():
        assert module(given, output_hidden_states=True, **mask)[0].device.type == "meta"
