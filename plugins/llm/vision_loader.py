"""How a loaded model reads images. Imported in worker processes only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.image_processor import ImageProcessor
from sixfold.plugins.llm.rope_positions import RopeIndex
from sixfold.plugins.llm.vision import ImageEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVision:
    """How a model reads images.

    Attributes:
        processor: Prepares them.
        encoder: Looks at them.
        image_token_id: What their features stand in the place of.
        rope_index: Its rule for positions of several directions, if it has one.
    """

    processor: ImageProcessor
    encoder: ImageEncoder
    image_token_id: int
    rope_index: RopeIndex | None

    @classmethod
    def of_model(cls, model: Any, processor: ImageProcessor, device: torch.device) -> LoadedVision:
        """Of a model that reads images."""
        return cls(
            processor=processor,
            encoder=ImageEncoder(model, device),
            image_token_id=int(model.config.image_token_id),
            rope_index=RopeIndex.of_model(model),
        )


def load_image_processor(path: Path, model: Any, model_name: str) -> ImageProcessor | None:
    """The model's own, if it reads images.

    Raises:
        ConfigError: It reads them in a way that the native runtime does not know.
    """
    config = model.config
    if not hasattr(config, "vision_config"):
        return None
    advice = "Set its option images: false to serve its text alone, or use another family."
    if not isinstance(getattr(config, "image_token_id", None), int):
        raise ConfigError(f"models.{model_name}: {type(model).__name__} does not put images among its tokens. {advice}")
    rope: dict[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if "mrope_section" in rope and RopeIndex.of_model(model) is None:
        raise ConfigError(
            f"models.{model_name}: {type(model).__name__} gives the parts of an image positions in several directions "
            f"(M-RoPE) by a rule that it does not tell. {advice}"
        )
    return ImageProcessor.load(path, model.dtype)
