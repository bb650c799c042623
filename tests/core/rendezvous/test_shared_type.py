"""No request changes the type of a module that all share: others compute with it meanwhile."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from sixfold.core.batching.parked import PipelineSide
from sixfold.core.errors import ConfigError
from sixfold.core.rendezvous.calls import CallRules, ModuleCall, TensorDigests
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.proxies import LaneModule
from sixfold.core.rendezvous.shared_type import keep_type

D: Any = diffusers  # exports its classes lazily


def small_vae(dtype: torch.dtype, *, force_upcast: bool = True) -> Any:
    return D.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=2, force_upcast=force_upcast).to(
        dtype
    )


@pytest.fixture
def lane() -> Any:
    lane = Lane("vae", torch.device("cpu"))
    yield lane
    lane.close()


def stand_in(vae: Any, lane: Lane) -> Any:
    methods = {"decode": CallRules(), "encode": CallRules(merges=False)}
    side: PipelineSide[ModuleCall, Any] = PipelineSide()
    return LaneModule(vae, side, lane, TensorDigests(), methods)


def test_a_request_can_not_cast_a_shared_module_but_may_ask_for_what_it_is(lane: Lane) -> None:
    vae = small_vae(torch.bfloat16)
    seen = stand_in(vae, lane)
    assert seen.to(torch.bfloat16) is seen
    assert seen.to("cpu", dtype=torch.bfloat16, non_blocking=True) is seen
    for wanted in (torch.float32, torch.device("meta")):
        with pytest.raises(AttributeError, match="must not change the shared AutoencoderKL"):
            seen.to(wanted)
    assert vae.dtype == torch.bfloat16


class Plain:
    """A pipeline that casts nothing, or with ``force_upcast`` an autoencoder that is to encode."""

    def __init__(self, dtype: torch.dtype, *, force_upcast: bool = True) -> None:
        self.vae = small_vae(dtype, force_upcast=force_upcast)


class LikeSdxl(Plain):
    """Casts in float16 to decode, too."""

    def upcast_vae(self) -> None:
        self.vae.to(torch.float32)


def test_no_pipeline_casts_its_autoencoder_in_bfloat16() -> None:
    pipeline = LikeSdxl(torch.bfloat16)
    keep_type(pipeline, torch.bfloat16)
    assert pipeline.vae.config.force_upcast is False


def test_float16_is_refused_where_it_needs_a_cast_and_nowhere_else() -> None:
    with pytest.raises(ConfigError, match="Use bfloat16"):
        keep_type(LikeSdxl(torch.float16), torch.float16)
    keep_type(LikeSdxl(torch.float16, force_upcast=False), torch.float16)
    by_default = Plain(torch.float16)
    keep_type(by_default, torch.float16)
    assert by_default.vae.config.force_upcast is False
    keep_type(object(), torch.float16)


def test_encodes_are_computed_one_by_one_in_the_lane(lane: Lane) -> None:
    vae = small_vae(torch.float32)
    seen = stand_in(vae, lane)
    pictures = [torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    futures = [seen.start("encode", picture) for picture in pictures]
    with torch.no_grad():
        for picture, future in zip(pictures, futures, strict=True):
            expected = vae.encode(picture).latent_dist.mean  # by as many threads as others have left in this process
            torch.testing.assert_close(future.result(20.0).latent_dist.mean, expected)
    assert (lane.num_calls, lane.num_forwards, lane.num_unmerged) == (3, 3, 3)


def test_an_encode_that_fails_counts_among_nothing(lane: Lane) -> None:
    seen = stand_in(small_vae(torch.float32), lane)
    with pytest.raises(RuntimeError, match="channels"):
        seen.start("encode", torch.rand(1, 7, 8, 8)).result(20.0)
    assert (lane.num_calls, lane.num_forwards, lane.num_unmerged) == (0, 0, 0)
