"""Runs tiny pipelines through the engine as the batch manager does, and alone as their library does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.batching.model import Finish, ModelInfo, StepRange
from sixfold.core.batching.rendezvous import PipelineSide
from sixfold.core.messages import Request, Usage
from sixfold.core.rendezvous.calls import CallOwner, CallRules, ModuleCall
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.model import TorchPipelineModel
from sixfold.core.rendezvous.row_cache import RowCache
from sixfold.core.rendezvous.scoped import LanePart, PipelinePlan, PipelineScope

IDS = frozenset({"img_ids", "txt_ids", "image_rotary_emb"})
PLAN = PipelinePlan(
    batched=frozenset({"transformer", "transformer_2", "unet", "controlnet"}),
    lanes={
        "vae": LanePart(methods={"decode": CallRules(ignored=frozenset({"generator"}))}, aside=frozenset({"encode"}))
    },
    rules={
        "FluxTransformer2DModel": CallRules(shared=IDS),
        "ChromaTransformer2DModel": CallRules(shared=IDS),
        "QwenImageTransformer2DModel": CallRules(row_lists=frozenset({"img_shapes"})),
        "ZImageTransformer2DModel": CallRules(times=frozenset({"t"}), ragged=frozenset({"x", "cap_feats"})),
    },
)


class Nothing(msgspec.Struct, frozen=True):
    """Inputs and outputs stay on the Python side in these tests."""


class PipelineModel(TorchPipelineModel[Nothing, Nothing]):
    """Runs what `works` says for a request id.

    Args:
        pipeline: Stock.
        works: Keyword arguments of the pipeline, by request id, made anew for each run: generators have a state.
    """

    def __init__(
        self,
        pipeline: Any,
        works: Mapping[str, Callable[[], dict[str, Any]]],
        *,
        plan: PipelinePlan = PLAN,
        caches: Mapping[int, RowCache] | None = None,
        max_units: int = 1 << 20,
    ) -> None:
        super().__init__(torch.device("cpu"), caches)
        self.lane = Lane("decode", torch.device("cpu"))
        self.scope = PipelineScope(plan, self.lane)
        self.pipeline = pipeline
        self.works = works
        self.results: dict[str, Any] = {}
        self.exact: set[str] = set()
        self.thresholds: dict[str, float] = {}
        self.schedulers: dict[str, Any] = {}
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
        name = request.request_id
        scheduler = self.schedulers.get(name)
        scoped = self.scope.copy_for(
            self.pipeline,
            side,
            owner=CallOwner(request_id=name, cache_threshold=self.thresholds.get(name)),
            variant=name if name in self.exact else None,
            scheduler=copy.deepcopy if scheduler is None else lambda own: scheduler.from_config(own.config),
        )
        self.results[name] = picture(scoped(**self.works[name]()))
        return Finish(result=Nothing(), usage=Usage())

    def forward(self, calls: Sequence[ModuleCall]) -> Sequence[Any]:
        self.batches.append([call.owner.request_id for call in calls if call.owner is not None])
        return super().forward(calls)

    def close(self) -> None:
        self.lane.close()


def picture(output: Any) -> NDArray[np.float32]:
    """The pixels of a pipeline's output."""
    return np.asarray(output[0] if isinstance(output, tuple) else next(iter(output.values())))
