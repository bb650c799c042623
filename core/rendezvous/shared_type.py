"""Keeps the type of an autoencoder that requests share: some pipelines would change it for the time of an encode."""

from __future__ import annotations

from typing import Any

import torch

from sixfold.core.errors import ConfigError


def keep_type(pipeline: Any, dtype: torch.dtype) -> None:
    """Sees to it that no request casts the pipeline's autoencoder to float32 and back: others decode with it meanwhile.

    Its ``force_upcast`` says that it may overflow in float16; many have it only by default. Pipelines that encode a picture
    obey it in bfloat16, too, which has the range of float32. So it is taken back.

    Args:
        pipeline: Of the diffusers library, with an autoencoder or without.
        dtype: The type that the autoencoder is to have.

    Raises:
        ConfigError: The type is float16, and the pipeline (one of SDXL's kind) would cast for it, as it must.
    """
    autoencoder = getattr(pipeline, "vae", None)
    if autoencoder is None or not getattr(autoencoder.config, "force_upcast", False):
        return
    if dtype is torch.float16 and hasattr(pipeline, "upcast_vae"):
        raise ConfigError("dtype float16: this model's autoencoder overflows in it. Use bfloat16 or float32.")
    autoencoder.register_to_config(force_upcast=False)
