"""Transformers of the diffusers library over ranks beside the same in one process; runs in every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.modules import RankModule, RankModules
from sixfold.core.rendezvous.splitting import split_plan
from tests import tiny_pipelines as images
from tests.plugins.video import tiny_pipelines as videos


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def wan() -> tuple[Any, dict[str, Any]]:
    return videos.build("wan").transformer, {
        "hidden_states": _draw(2, 16, 3, 6, 10),
        "timestep": torch.tensor([800.0, 200.0]),
        "encoder_hidden_states": _draw(2, 11, 32),
    }


def ltx() -> tuple[Any, dict[str, Any]]:
    mask = torch.ones(2, 13)
    mask[1, 5:] = 0
    return videos.build("ltx").transformer, {
        "hidden_states": _draw(2, 3 * 5 * 4, 8),
        "timestep": torch.tensor([[800.0], [200.0]]),
        "encoder_hidden_states": _draw(2, 13, 32),
        "encoder_attention_mask": mask,
        "num_frames": 3,
        "height": 5,
        "width": 4,
        "rope_interpolation_scale": (1.0, 1.0, 1.0),
    }


def hunyuan() -> tuple[Any, dict[str, Any]]:
    mask = torch.ones(2, 9)
    mask[1, 4:] = 0
    return videos.build("hunyuan").transformer, {
        "hidden_states": _draw(2, 4, 3, 5, 4),
        "timestep": torch.tensor([800.0, 200.0]),
        "encoder_hidden_states": _draw(2, 9, 16),
        "encoder_attention_mask": mask,
        "pooled_projections": _draw(2, 8),
        "guidance": torch.tensor([6000.0, 3000.0]),
    }


def cogvideox() -> tuple[Any, dict[str, Any]]:
    return videos.build("cogvideox").transformer, {
        "hidden_states": _draw(2, 3, 4, 6, 4)[:, :, :, :4, :4],
        "timestep": torch.tensor([800, 200]),
        "encoder_hidden_states": _draw(2, 226, 32),
    }


def flux() -> tuple[Any, dict[str, Any]]:
    tokens = torch.cat([torch.zeros(35, 1), torch.cartesian_prod(torch.arange(5), torch.arange(7))], 1).float()
    transformer = images.flux().pipeline.transformer
    return transformer, {
        "hidden_states": _draw(2, 35, transformer.config.in_channels),
        "encoder_hidden_states": _draw(2, 7, transformer.config.joint_attention_dim),
        "pooled_projections": _draw(2, transformer.config.pooled_projection_dim),
        "timestep": torch.tensor([0.8, 0.2]),
        "guidance": torch.tensor([3.5, 7.0]),
        "img_ids": tokens,
        "txt_ids": torch.zeros(7, 3),
    }


def qwen() -> tuple[Any, dict[str, Any]]:
    transformer = images.qwen_image().pipeline.transformer
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    return transformer, {
        "hidden_states": _draw(2, 30, transformer.config.in_channels),
        "encoder_hidden_states": _draw(2, 9, transformer.config.joint_attention_dim),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.tensor([0.8, 0.2]),
        "img_shapes": [[(1, 5, 6)]] * 2,
    }


def sd3() -> tuple[Any, dict[str, Any]]:
    return images.sd3().pipeline.transformer, {
        "hidden_states": _draw(2, 4, 10, 14),
        "encoder_hidden_states": _draw(2, 7, 32),
        "pooled_projections": _draw(2, 64),
        "timestep": torch.tensor([800.0, 200.0]),
    }


def pixart() -> tuple[Any, dict[str, Any]]:
    transformer = images.pixart().pipeline.transformer
    mask = torch.ones(2, 9)
    mask[1, 4:] = 0
    return transformer, {
        "hidden_states": _draw(2, 4, 10, 14),
        "encoder_hidden_states": _draw(2, 9, transformer.config.caption_channels),
        "encoder_attention_mask": mask,
        "timestep": torch.tensor([800.0, 200.0]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


BUILDERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "wan": wan,
    "ltx": ltx,
    "hunyuan": hunyuan,
    "cogvideox": cogvideox,
    "flux": flux,
    "qwen": qwen,
    "sd3": sd3,
    "pixart": pixart,
}


def all_differences(mesh: Mesh) -> dict[str, float | str]:
    """The largest difference of each transformer, or what it raised."""
    return {name: difference(build, mesh) for name, build in BUILDERS.items()}


def difference(build: Callable[[], tuple[Any, dict[str, Any]]], mesh: Mesh) -> float | str:
    module, arguments = build()
    modules = None
    try:
        expected = module(**arguments, return_dict=False)[0]
        modules = RankModules({"denoiser": RankModule(module=module, plan=split_plan(module))}, mesh)
        # Twice: what the first forward asked the others, the second knows.
        results = [modules.run("denoiser", {**arguments, "return_dict": False})[0] for _ in range(2)]
        return max(float((result - expected).abs().max() / expected.abs().max()) for result in results)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if modules is not None:
            modules.close()
