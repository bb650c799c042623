"""Transformers at their real sizes with random weights, and one call of each; part of multi.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}  # of the norm of the difference to one device, over the norm


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A transformer and one call of it.

    Attributes:
        name: For the table.
        build: Makes the module on the current default device.
        arguments: Makes a call of so many rows.
        dtype: Of weights and activations.
        rows: Of a call whose tokens are shared.
        plan: How the module is split; None asks for the denoiser's.
    """

    name: str
    build: Callable[[], Any]
    arguments: Callable[[int], dict[str, Any]]
    dtype: str = "bfloat16"
    rows: int = 1
    plan: Any = None

    @property
    def tolerance(self) -> float:
        """The largest relative error that passes."""
        return TOLERANCE[self.dtype]


def wan(tiny: bool, frames: int, dtype: str = "bfloat16") -> Shape:
    """Wan 2.1 1.3B at 832x480."""
    import diffusers
    import torch

    sizes = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 12, "ffn_dim": 32} if tiny else {}
    real = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    latents = (16, 3, 10, 14) if tiny else (16, (frames - 1) // 4 + 1, 60, 104)

    def arguments(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(rows, *latents),
            "timestep": torch.linspace(500, 900, rows),
            "encoder_hidden_states": torch.randn(rows, 40 if tiny else 512, 4096),
            "return_dict": False,
        }

    return Shape(
        name=f"Wan 1.3B, 480p, {frames} frames, {dtype}",
        build=lambda: diffusers.WanTransformer3DModel(**{**real, **sizes}),
        arguments=arguments,
        dtype=dtype,
    )


def flux(tiny: bool, pixels: int) -> Shape:
    """Flux.1-dev."""
    import diffusers
    import torch

    sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 4} if tiny else {}
    side = 6 if tiny else pixels // 16

    def arguments(rows: int) -> dict[str, Any]:
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
        image_ids = torch.nn.functional.pad(grid, (1, 0))
        num_text = 9 if tiny else 512
        return {
            "hidden_states": torch.randn(rows, side * side, 64),
            "encoder_hidden_states": torch.randn(rows, num_text, 4096),
            "pooled_projections": torch.randn(rows, 768),
            "timestep": torch.linspace(0.5, 0.9, rows),
            "img_ids": image_ids.to(torch.float32),
            "txt_ids": torch.zeros(num_text, 3),
            "guidance": torch.full((rows,), 3.5),
            "return_dict": False,
        }

    return Shape(
        name=f"Flux.1-dev, {pixels} px, bfloat16",
        build=lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True, **sizes),
        arguments=arguments,
    )


def qwen(tiny: bool, pixels: int) -> Shape:
    """Qwen-Image: 20 billion parameters, which take 41 GB of each device."""
    import diffusers
    import torch

    small = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    sizes = {**small, "joint_attention_dim": 48} if tiny else {}
    side = 7 if tiny else pixels // 16

    def arguments(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(rows, side * side, 64),
            "encoder_hidden_states": torch.randn(rows, 9 if tiny else 256, sizes.get("joint_attention_dim", 3584)),
            "timestep": torch.linspace(0.5, 0.9, rows),
            "img_shapes": [[(1, side, side)]] * rows,
            "return_dict": False,
        }

    return Shape(
        name=f"Qwen-Image, {pixels} px, bfloat16",
        build=lambda: diffusers.QwenImageTransformer2DModel(**sizes),
        arguments=arguments,
    )


def whisper(tiny: bool) -> Shape:
    """The encoder of Whisper large-v3 over 8 windows."""
    import torch
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from sixfold.plugins.asr.encoder_ranks import PLAN

    sizes = {"encoder_layers": 2, "d_model": 64, "encoder_attention_heads": 8, "encoder_ffn_dim": 96} if tiny else {}
    real = {"encoder_layers": 32, "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    config = transformers.WhisperConfig(**{**real, **sizes}, num_mel_bins=128, attn_implementation="sdpa")
    return Shape(
        name="Whisper large-v3, encoder, 8 windows, bfloat16",
        build=lambda: WhisperEncoder(config),
        arguments=lambda rows: {"input_features": torch.randn(rows, 128, 3000)},
        rows=2 if tiny else 8,
        plan=PLAN,
    )


SHAPES: dict[str, Callable[[bool], Shape]] = {
    "wan-float32": lambda tiny: wan(tiny, 9, "float32"),
    "wan": lambda tiny: wan(tiny, 81),
    "flux": lambda tiny: flux(tiny, 2048),
    "whisper": whisper,
    "qwen-1328": lambda tiny: qwen(tiny, 1328),
    "qwen-2048": lambda tiny: qwen(tiny, 2048),
}
"""By the name of the step that measures it."""


def build(shape: Shape, device: Any, rows: int) -> tuple[Any, dict[str, Any]]:
    """The module and a call, equal in all ranks: drawn from one seed on devices of one kind."""
    import torch

    dtype = getattr(torch, shape.dtype)
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        torch.set_default_dtype(dtype)
        try:
            module = shape.build().eval().requires_grad_(False)
            arguments = shape.arguments(rows)
        finally:
            torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
    return module, {
        name: value.to(dtype) if hasattr(value, "to") and value.is_floating_point() and "ids" not in name else value
        for name, value in arguments.items()
    }


def row_of(arguments: dict[str, Any], row: int, rows: int) -> dict[str, Any]:
    """The call of one of the rows."""

    def cut(name: str, value: Any) -> Any:
        is_tensor = hasattr(value, "shape") and value.ndim > 0 and "ids" not in name
        has_rows = len(value) == rows if is_tensor or isinstance(value, list) else False
        return value[row : row + 1] if has_rows else value

    return {name: cut(name, value) for name, value in arguments.items()}


def relative_error(expected: Any, actual: Any) -> float:
    """The norm of the difference over the norm."""
    expected, actual = expected.double(), actual.double()
    return float((expected - actual).norm() / expected.norm())
