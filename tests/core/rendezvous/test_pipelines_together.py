"""Stock pipelines that share forwards draw what each draws alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sixfold.core.batching.manager import Limits
from sixfold.core.messages import Request
from sixfold.core.runtime.local_replica import LocalReplica
from tests.core.rendezvous.harness import Nothing, PipelineModel, picture
from tests.tiny_pipelines import FAMILIES, TinyPipeline

# The libraries' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

Work = Callable[[], dict[str, Any]]


def works_for(tiny: TinyPipeline, count: int = 6) -> dict[str, Work]:
    """Mixed step counts, guidance and seeds, two sizes."""

    def work(index: int) -> Work:
        size = tiny.size // 2 if index % 3 == 2 else tiny.size
        return lambda: {
            **tiny.prompt(10 * index),
            "num_inference_steps": 2 + index % 3,
            tiny.guidance: (1.0, 3.0, 5.5)[index % 3],
            "height": size,
            "width": size,
            "generator": torch.Generator().manual_seed(index),
            "output_type": "np",
        }

    return {f"r{index}": work(index) for index in range(count)}


async def run_together(model: PipelineModel) -> None:
    replica = LocalReplica(model, limits=Limits(max_running_sequences=16))
    streams = [replica.submit(Request(request_id=name, input=Nothing(), arrived_s=0.0)) for name in model.works]
    for stream in streams:
        async with stream:
            while events := await stream.next_events():
                assert not hasattr(events[-1], "error"), events[-1]
    await replica.close()


def alone(pipeline: Any, work: Work, scheduler: Any = None) -> Any:
    own = copy.copy(pipeline)
    own.scheduler = (
        copy.deepcopy(pipeline.scheduler) if scheduler is None else scheduler.from_config(pipeline.scheduler.config)
    )
    own.set_progress_bar_config(disable=True)
    return picture(own(**work()))


@pytest.mark.parametrize("family", FAMILIES)
async def test_mixed_requests_draw_what_each_draws_alone(family: str) -> None:
    tiny = FAMILIES[family]()
    works = works_for(tiny)
    model = PipelineModel(tiny.pipeline, works)
    await run_together(model)
    assert max(len(set(batch)) for batch in model.batches) >= 3
    for name, work in works.items():
        expected = alone(tiny.pipeline, work)
        assert np.abs(model.results[name] - expected).max() <= 1e-5, name
    assert np.abs(model.results["r0"] - model.results["r1"]).max() > 0.05  # the equality is not trivial
