"""Keeps the type of an autoencoder that requests share: some pipelines would change it for the time of an encode."""

from __future__ import annotations

from typing import Any

import torch

from sixfold.core.errors import ConfigError


def keep_type(autoencoder: Any, dtype: torch.dtype) -> None:
    """Sees to it that no pipeline casts the autoencoder to float32 and back: others decode with it meanwhile.

    Args:
        autoencoder: Of the diffusers library, or None. Its ``force_upcast`` says that it overflows in float16, and pipelines
            that encode (SDXL's with an image) obey it in bfloat16, too, which has the range of float32: it is taken back.
        dtype: The type that it is to have.

    Raises:
        ConfigError: It overflows in this type.
    """
    if autoencoder is None or not getattr(autoencoder.config, "force_upcast", False):
        return
    if dtype is torch.float16:
        raise ConfigError("dtype float16: this model's autoencoder overflows in it. Use bfloat16 or float32.")
    autoencoder.register_to_config(force_upcast=False)
