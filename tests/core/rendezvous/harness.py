"""Runs tiny pipelines through the engine as the batch manager does, and alone as their library does."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.batching.manager import Limits
from sixfold.core.batching.model import Finish, ModelInfo, StepRange
from sixfold.core.batching.parked import PipelineSide
from sixfold.core.errors import RequestError
from sixfold.core.messages import Failed, Request, Usage
from sixfold.core.rendezvous.adapters import Adapters, AdapterSwitch
from sixfold.core.rendezvous.calls import CallOwner, CallRules, ModuleCall
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.model import TorchPipelineModel
from sixfold.core.rendezvous.row_cache import RowCache
from sixfold.core.rendezvous.scoped import LanePart, PipelinePlan, PipelineScope
from sixfold.core.runtime.local_replica import LocalReplica
from tests.tiny_pipelines import TinyPipeline

PLAN = PipelinePlan(
    batched=frozenset({"transformer", "transformer_2", "unet", "controlnet"}),
    lanes={"vae": LanePart(methods={"decode": CallRules(ignored=frozenset({"generator"}))})},
    rules={"FluxTransformer2DModel": CallRules(shared=frozenset({"img_ids", "txt_ids"}))},
)


class Nothing(msgspec.Struct, frozen=True):
    """Inputs and outputs stay on the Python side in these tests."""


class PipelineModel(TorchPipelineModel[Nothing, Nothing]):
    """Runs what `works` says for a request id.

    Args:
        pipeline: Stock.
        works: Keyword arguments of the pipeline, by request id, made anew for each run: generators have a state.
        device: What the model takes itself to be on.
    """

    def __init__(
        self,
        pipeline: Any,
        works: Mapping[str, Callable[[], dict[str, Any]]],
        *,
        plan: PipelinePlan = PLAN,
        caches: Mapping[int, RowCache] | None = None,
        switches: Mapping[int, AdapterSwitch] | None = None,
        max_units: int = 1 << 20,
        device: str = "cpu",
    ) -> None:
        super().__init__(torch.device(device), caches, switches=switches)
        self.lane = Lane("decode", torch.device("cpu"))
        self.scope = PipelineScope(plan, self.lane, switches)
        self.pipeline = pipeline
        self.works = works
        self.results: dict[str, Any] = {}
        self.exact: set[str] = set()
        self.thresholds: dict[str, float] = {}
        self.adapters: dict[str, Adapters] = {}
        self.schedulers: dict[str, Any] = {}
        self.seen_cache_bytes: list[int] = []
        self.batches: list[list[str]] = []
        self.max_units = max_units

    @property
    def info(self) -> ModelInfo:
        return ModelInfo()

    @property
    def step_range(self) -> StepRange:
        return StepRange(min_units=self.max_units, initial_units=self.max_units, max_units=self.max_units)

    def estimate_units(self, request: Request[Nothing]) -> int:
        return 1

    def run_pipeline(
        self, request: Request[Nothing], piece: object, side: PipelineSide[ModuleCall, Any]
    ) -> Finish[Nothing]:
        torch.set_num_threads(1)  # see `alone`
        name = request.request_id
        scheduler = self.schedulers.get(name)
        scoped = self.scope.copy_for(
            self.pipeline,
            side,
            owner=CallOwner(request_id=name, cache_threshold=self.thresholds.get(name)),
            variant=name if name in self.exact else None,
            adapters=self.adapters.get(name, ()),
            scheduler=copy.deepcopy if scheduler is None else lambda own: scheduler.from_config(own.config),
        )
        self.results[name] = picture(scoped(**self.works[name]()))
        return Finish(result=Nothing(), usage=Usage())

    def forward(self, calls: Sequence[ModuleCall]) -> Sequence[Any]:
        torch.set_num_threads(1)
        self.batches.append([call.owner.request_id for call in calls if call.owner is not None])
        answers = super().forward(calls)
        self.seen_cache_bytes.append(self.cache_bytes)
        return answers

    def close(self) -> None:
        self.lane.close()


async def run_together(model: PipelineModel, *, max_running_sequences: int = 16) -> dict[str, RequestError]:
    """Runs all works at once; returns the errors of those that failed."""
    replica = LocalReplica(model, limits=Limits(max_running_sequences=max_running_sequences))
    streams = {name: replica.submit(Request(request_id=name, input=Nothing(), arrived_s=0.0)) for name in model.works}
    errors: dict[str, RequestError] = {}
    for name, stream in streams.items():
        async with stream:
            while events := await stream.next_events():
                if isinstance(events[-1], Failed):
                    errors[name] = events[-1].error
    await replica.close()
    return errors


def alone(pipeline: Any, work: Callable[[], dict[str, Any]], scheduler: Any = None) -> NDArray[np.float32]:
    """What the library draws for a work by itself, on one thread: the bits of a sum depend on how many share it."""
    own = copy.copy(pipeline)
    own.scheduler = copy.deepcopy(pipeline.scheduler)
    if scheduler is not None:
        own.scheduler = scheduler.from_config(pipeline.scheduler.config)
    own.set_progress_bar_config(disable=True)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return picture(own(**work()))
    finally:
        torch.set_num_threads(num_threads)


def works_for(tiny: TinyPipeline, count: int = 6) -> dict[str, Callable[[], dict[str, Any]]]:
    """Mixed step counts, guidance and seeds, two sizes."""

    def work(index: int) -> Callable[[], dict[str, Any]]:
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


def picture(output: Any) -> NDArray[np.float32]:
    """The pixels of a pipeline's output."""
    return np.asarray(next(iter(output.values())))


def hold_first_step(model: Any, *, until_prepared: int) -> None:
    """Makes the first step wait until so many requests are ready: small clips would end before others have begun."""
    changed, num_prepared = threading.Condition(), 0
    prepare, forward = model.prepare, model.forward

    def counted(*arguments: Any) -> Any:
        nonlocal num_prepared
        sequences = prepare(*arguments)
        with changed:
            num_prepared += 1
            changed.notify_all()
        return sequences

    def held(calls: Any) -> Any:
        with changed:
            assert changed.wait_for(lambda: num_prepared >= until_prepared, 120), "the others were not prepared"
        return forward(calls)

    model.prepare, model.forward = counted, held
