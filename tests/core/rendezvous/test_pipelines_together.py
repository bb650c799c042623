"""Stock pipelines share forwards at their calls: results, batch keys, faults, caches and lanes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sixfold.core.rendezvous.calls import ModuleCall
from sixfold.core.rendezvous.memory import OutOfMemory
from sixfold.core.rendezvous.row_cache import RowCache, transformer_blocks
from tests.core.rendezvous.harness import PipelineModel, alone, run_together, works_for
from tests.tiny_pipelines import TinyPipeline, flux, qwen_image, sd3, sdxl

D: Any = diffusers
# The libraries' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def same_size_works(tiny: TinyPipeline, count: int, steps: int = 4) -> dict[str, Any]:
    def work(index: int) -> Any:
        return lambda: {
            **tiny.prompt(10 * index),
            "num_inference_steps": steps,
            "height": tiny.size,
            "width": tiny.size,
            "generator": torch.Generator().manual_seed(index),
            "output_type": "np",
        }

    return {f"r{index}": work(index) for index in range(count)}


async def test_mixed_schedulers_share_one_denoiser() -> None:
    tiny = sdxl()
    works = works_for(tiny)
    model = PipelineModel(tiny.pipeline, works)
    model.schedulers = {
        "r0": D.DPMSolverMultistepScheduler,
        "r1": D.UniPCMultistepScheduler,
        "r3": D.HeunDiscreteScheduler,
        "r4": D.LCMScheduler,
    }
    assert await run_together(model) == {}
    for name, work in works.items():
        expected = alone(tiny.pipeline, work, model.schedulers.get(name))
        assert np.abs(model.results[name] - expected).max() <= 1e-5, name


async def test_a_request_that_wants_to_be_exact_shares_with_nobody_and_is_equal_to_the_last_bit() -> None:
    tiny = flux()
    works = same_size_works(tiny, 4)
    model = PipelineModel(tiny.pipeline, works)
    model.exact = {"r2"}
    assert await run_together(model) == {}
    assert all(batch == ["r2"] for batch in model.batches if "r2" in batch)
    assert any(len(batch) == 3 for batch in model.batches)
    np.testing.assert_array_equal(model.results["r2"], alone(tiny.pipeline, works["r2"]))


class OutOfMemoryModel(PipelineModel):
    """Has memory for two rows, and none at all for one request."""

    too_large = "r1"
    num_failures = 0

    def _together(self, calls: Sequence[ModuleCall]) -> list[Any]:
        names = [call.owner.request_id for call in calls if call.owner is not None]
        if len(calls) > 2 or self.too_large in names:
            self.num_failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return super()._together(calls)


async def test_a_step_without_memory_is_tried_smaller_and_fails_only_who_never_fits() -> None:
    tiny = flux()
    works = same_size_works(tiny, 5)
    model = OutOfMemoryModel(tiny.pipeline, works)
    errors = await run_together(model)
    assert set(errors) == {"r1"}
    assert isinstance(errors["r1"], OutOfMemory)
    assert model.num_failures > 3
    for name in ("r0", "r2", "r3", "r4"):
        assert np.abs(model.results[name] - alone(tiny.pipeline, works[name])).max() <= 1e-5


class LeakyDenoiser(D.SD3Transformer2DModel):  # type: ignore[misc]  # diffusers ships no types
    """Lets rows see each other: merging must be noticed and given up."""

    def forward(
        self,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        pooled_projections: Any = None,
        timestep: Any = None,
        joint_attention_kwargs: Any = None,
        return_dict: bool = True,
    ) -> Any:
        plain: Any = getattr(super(), "forward")  # noqa: B009 - typed as Any
        answer: Any = plain(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
            return_dict=False,
        )
        return (answer[0] + 0.1 * answer[0].mean(dim=0, keepdim=True),)


async def test_a_module_whose_rows_see_each_other_is_found_out_and_runs_alone(caplog: pytest.LogCaptureFixture) -> None:
    tiny = sd3()
    tiny.pipeline.transformer.__class__ = LeakyDenoiser
    works = same_size_works(tiny, 4)
    model = PipelineModel(tiny.pipeline, works)
    assert await run_together(model) == {}
    for name, work in works.items():
        np.testing.assert_array_equal(model.results[name], alone(tiny.pipeline, work))
    assert "runs them alone" in caplog.text


class RoughDenoiser(D.SD3Transformer2DModel):  # type: ignore[misc]  # diffusers ships no types
    """Rounds otherwise for other numbers of rows, as kernels do that are chosen by shape: by 2% of a value here."""

    def forward(self, hidden_states: Any, **others: Any) -> Any:
        plain: Any = getattr(super(), "forward")  # noqa: B009 - typed as Any
        (answer,) = plain(hidden_states, **{**others, "return_dict": False})
        pattern = torch.sin(torch.arange(answer[0].numel()) + len(answer)).view(answer[0].shape)
        return (answer + 0.02 * answer.abs().max() * pattern,)


class RoughLeakyDenoiser(RoughDenoiser):
    """Rounds otherwise, and lets rows see each other."""

    def forward(self, hidden_states: Any, **others: Any) -> Any:
        (answer,) = super().forward(hidden_states, **others)
        return (answer + 0.5 * answer.mean(dim=0, keepdim=True),)


async def test_a_module_that_rounds_otherwise_for_more_rows_is_not_taken_for_one_whose_rows_see_each_other() -> None:
    tiny = sd3()
    tiny.pipeline.transformer.__class__ = RoughDenoiser
    model = PipelineModel(tiny.pipeline, same_size_works(tiny, 4))
    assert await run_together(model) == {}
    assert set(model.merges_rightly.values()) == {True}


async def test_rough_rounding_hides_no_rows_that_see_each_other(caplog: pytest.LogCaptureFixture) -> None:
    tiny = sd3()
    tiny.pipeline.transformer.__class__ = RoughLeakyDenoiser
    model = PipelineModel(tiny.pipeline, same_size_works(tiny, 4))
    assert await run_together(model) == {}
    assert set(model.merges_rightly.values()) == {False}
    assert "runs them alone" in caplog.text


async def test_the_decoder_works_beside_the_steps_and_takes_equal_pictures_together() -> None:
    tiny = flux()
    works = same_size_works(tiny, 6, steps=3)
    model = PipelineModel(tiny.pipeline, works)
    lane: Any = model.lane
    all_wait, submit, compute = threading.Semaphore(0), lane.submit, lane._compute

    def submitted(call: Any) -> Any:
        future = submit(call)
        all_wait.release()
        return future

    def computed(*arguments: Any) -> None:
        if lane.num_forwards == 0:  # the first decode lasts until the last picture is there: the steps do go on
            assert all(all_wait.acquire(timeout=60) for _ in range(6))
        compute(*arguments)

    lane.submit, lane._compute = submitted, computed
    assert await run_together(model) == {}
    assert (lane.num_calls, lane.num_forwards) == (6, 2) or lane.num_forwards == 1


@pytest.mark.parametrize("make", [flux, qwen_image])
@pytest.mark.parametrize("threshold", [0.9, 1.1])
async def test_cached_rows_in_a_mixed_batch_are_those_of_diffusers_own_cache_alone(make: Any, threshold: float) -> None:
    tiny = make()
    works = works_for(tiny, 6)
    for index in range(6):
        works[f"r{index}"] = lambda first=works[f"r{index}"]: {**first(), "num_inference_steps": 10}  # type: ignore[misc]
    expected: dict[str, Any] = {}
    for name, work in works.items():
        own = make()
        if name != "r5":
            own.pipeline.transformer.enable_cache(D.FirstBlockCacheConfig(threshold=threshold))
        expected[name] = alone(own.pipeline, work)
    cache = RowCache(transformer_blocks(tiny.pipeline.transformer))
    model = PipelineModel(tiny.pipeline, works, caches={id(tiny.pipeline.transformer): cache})
    model.thresholds = {f"r{index}": threshold for index in range(5)}
    assert await run_together(model) == {}
    assert cache.num_hits > 0
    assert cache.num_misses > 0
    for name in works:
        assert np.abs(model.results[name] - expected[name]).max() <= 1e-5, name
    assert model.cache_bytes == 0  # all given back
    assert max(model.seen_cache_bytes) > 0
