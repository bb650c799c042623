"""What a folder of the diffusers library tells the planner of ranks; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from sixfold.core.family import ModelFiles
from sixfold.core.memory.weights import weights_bytes
from sixfold.core.parallel.planner import ParallelShape

_VAE_FACTOR = 8
_PATCH = 2


def denoiser_shape(
    files: ModelFiles, *, width: int, height: int, num_frames: int, guided: bool, itemsize: int
) -> ParallelShape:
    """The shape of the folder's denoiser for a usual request.

    Args:
        files: The folder.
        width: In pixels.
        height: Likewise.
        num_frames: 1 for a picture.
        guided: Whether requests have two branches of guidance.
        itemsize: Bytes of an activation.
    """
    folder = "transformer" if files.has("transformer") else "unet"
    config = files.json(f"{folder}/config.json")
    heads = _first_int(config, ("num_attention_heads", "num_heads"), 8)
    layers = _first_int(config, ("num_layers",), 1) + _first_int(config, ("num_single_layers",), 0)
    frames = (num_frames - 1) // 4 + 1  # of latents, in most video autoencoders
    side = _VAE_FACTOR * _PATCH
    return ParallelShape(
        num_heads=heads,
        num_kv_heads=_first_int(config, ("num_key_value_heads", "num_kv_heads"), heads),
        head_dim=_first_int(config, ("attention_head_dim",), 64),
        num_layers=max(1, layers),
        num_tokens=max(1, frames * (width // side) * (height // side)),
        # A model that embeds its guidance has one branch.
        num_rows=2 if guided and not config.get("guidance_embeds") else 1,
        parameters=weights_bytes(files.path / folder, itemsize=1, recursive=True),
        itemsize=itemsize,
        can_split_tokens=folder == "transformer",
    )


def _first_int(config: dict[str, Any], names: tuple[str, ...], otherwise: int) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), otherwise)
