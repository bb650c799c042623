"""What requests that run at once share of a pipeline, and what each has for itself."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance_mix import AdaptiveProjectedMixGuidance

from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.scoped import PipelinePlan, PipelineScope
from tests.plugins.video.tiny_pipelines import tokenizer


class Pipeline:
    """Of any components."""

    def __init__(self, **components: Any) -> None:
        self.components = components
        self.__dict__ |= components
        self.met = threading.Barrier(2)

    def encode(self) -> bool:
        """Whether another thread was inside at the same time."""
        try:
            self.met.wait(timeout=0.5)
        except threading.BrokenBarrierError:
            return False
        return True


class Processor:
    """As transformers': it calls its tokenizer, which pipelines reach as well."""

    def __init__(self) -> None:
        self.tokenizer: Any = tokenizer()

    def __call__(self, text: str) -> Any:
        return self.tokenizer(text)


class NoSide:
    """Of a pipeline that calls no module."""


@pytest.fixture
def scope() -> Any:
    plan = PipelinePlan(batched=frozenset(), kept=frozenset({"checker"}), alone=frozenset({"encode"}))
    return PipelineScope(plan, Lane("decode", torch.device("cpu")))


def two(scope: Any, pipeline: Any) -> list[Any]:
    side: Any = NoSide()
    return [scope.copy_for(pipeline, side) for _ in range(2)]


def guided(guider: Any, step: int, values: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    guider.set_state(step=step, num_inference_steps=8, timestep=torch.tensor(1))
    branches = guider.prepare_inputs({"seen": values})
    for branch in branches:
        branch.noise_pred = branch.seen
    prediction: torch.Tensor = guider(branches)[0]
    return prediction


def test_a_request_has_a_guider_of_its_own_with_its_own_momentum(scope: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    mine, others = torch.randn(2, 8, 2, 1, 4, 8, 8, generator=generator)
    pipeline = Pipeline(guider=AdaptiveProjectedMixGuidance())
    alone, _ = two(scope, pipeline)
    expected = [guided(alone.guider, step, (mine[step][0], mine[step][1])) for step in range(8)]
    first, second = two(scope, pipeline)
    for step in range(8):
        found = guided(first.guider, step, (mine[step][0], mine[step][1]))
        guided(second.guider, step, (others[step][0], others[step][1]))
        assert torch.equal(found, expected[step]), step


def test_methods_that_change_a_shared_part_run_for_one_request_at_a_time(scope: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(each.encode) for each in two(scope, Pipeline())]
        met = [each.result(30) for each in asked]
    assert met == [False, False]


def test_a_processor_and_a_tokenizer_under_any_name_wait_for_each_other(scope: Any) -> None:
    processor = Processor()
    pipeline = Pipeline(text_reader=processor, pe_tokenizer=processor.tokenizer)
    first, second = two(scope, pipeline)
    assert second.text_reader.tokenizer.pad_token == "<pad>"
    entered, go_on = threading.Event(), threading.Event()
    kind: Any = processor.tokenizer.__class__
    call = kind.__call__

    def wait_inside(self: Any, text: str) -> Any:
        entered.set()
        assert go_on.wait(30)
        return call(self, text)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.setattr(kind, "__call__", wait_inside)
        waiting = pool.submit(first.text_reader, "a")
        assert entered.wait(30)
        patch.setattr(kind, "__call__", call)
        others = [pool.submit(second.pe_tokenizer, "a"), pool.submit(second.text_reader.tokenizer, "a")]
        assert not wait(others, timeout=0.5).done
        go_on.set()
        assert waiting.result(30)["input_ids"] == others[0].result(30)["input_ids"] == others[1].result(30)["input_ids"]


def test_a_pipeline_says_how_to_pad_and_changes_nothing_else(scope: Any) -> None:
    pipeline = Pipeline(tokenizer=tokenizer())
    first, _ = two(scope, pipeline)
    first.tokenizer.padding_side = "left"
    assert pipeline.components["tokenizer"].padding_side == "left"
    with pytest.raises(AttributeError, match="must not change"):
        first.tokenizer.model_max_length = 3


def test_a_module_that_a_pipeline_moves_around_each_use_stays(scope: Any) -> None:
    checker = torch.nn.Linear(2, 2)
    first, _ = two(scope, Pipeline(checker=checker))
    assert first.checker.to("meta") is first.checker
    assert checker.weight.device.type == "cpu"
    assert torch.equal(first.checker(torch.ones(2)), checker(torch.ones(2)))
