"""Pictures on their way into a prompt: what the model's own processor makes of one, and how many tokens stand for it."""

from __future__ import annotations

import copy
import importlib.util
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from torch import Tensor, dtype
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from sixfold.core.errors import InvalidRequest, SourceError
from sixfold.core.family import ModelFiles
from sixfold.plugins.llm.generation import ImageDetail

# What processors give beside the arguments of the vision tower.
_OF_THE_TEXT = frozenset({"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"})
# OpenAI's reference: with low detail a model sees a picture of 512 x 512 pixels at most.
_LOW_DETAIL_SIDE = 512
# What processors raise on pictures of a shape that they were not made for.
_ODD_SHAPE = (ValueError, ArithmeticError, LookupError, TypeError)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")

# Typed in part.
_PROCESSORS: Any = AutoProcessor
_IMAGE_PROCESSORS: Any = AutoImageProcessor
_TOKENIZERS: Any = AutoTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedImage:
    """One picture, ready for the vision tower.

    Attributes:
        token_ids: What stands in the prompt for it, marks around it included.
        inputs: Arguments of the model's ``get_image_features``, one picture along the first axis.
    """

    token_ids: list[int]
    inputs: Mapping[str, Tensor]


class ImageProcessor:
    """A transformers processor, one copy a thread. Each picture is processed for itself.

    Args:
        processor: Of transformers; its tokenizer belongs to it alone.
        type: That of the model's weights; pixels are kept in it.

    Attributes:
        stock: What transformers loaded. Only for checks: not to be called by several threads.
    """

    def __init__(self, processor: Any, type: dtype) -> None:
        self.stock = processor
        self._type = type
        self._own = threading.local()
        self._splits = getattr(processor.image_processor, "do_image_splitting", None) is True

    @classmethod
    def load(cls, path: Path, type: dtype) -> ImageProcessor:
        """Reads the processor of a model folder.

        Raises:
            SourceError: The folder has none that works here; says why.
        """
        try:
            return cls(_read_processor(path), type)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise SourceError(
                f"The model's image processor can't be loaded: {error} Install what it names, pull the model again, or "
                "set the model's option images: false to serve its text alone."
            ) from error

    @property
    def image_token(self) -> str:
        """What stands for a picture in a rendered conversation."""
        return str(self.stock.image_token)

    @property
    def chat_template(self) -> str | None:
        """The processor's own template, for tokenizers that have none."""
        template = getattr(self.stock, "chat_template", None)
        return template if isinstance(template, str) else None

    def treats_images_alone(self) -> bool:
        """Whether it makes of each image of a prompt what it makes of it alone: some cut one image, but not several."""
        pictures = [Image.new("RGB", (96, 64)), Image.new("RGB", (64, 64))]
        text = self.image_token * len(pictures)
        made = self._of_this_thread()(text=text, images=pictures, return_tensors="pt", add_special_tokens=False)
        together: list[int] = made["input_ids"][0].tolist()
        return together == [token for picture in pictures for token in self.process(picture).token_ids]

    def typical_tokens(self) -> int:
        """Tokens that stand for a picture of ordinary size."""
        return len(self.process(Image.new("RGB", (1024, 768))).token_ids)

    def process(self, image: Image.Image, *, detail: ImageDetail = "auto", param: str = "messages") -> ProcessedImage:
        """Scales, cuts and normalizes a picture. [pool]

        Args:
            image: In RGB.
            detail: As the client asked: ``low`` bounds it to 512 pixels a side and does not cut it into parts.
            param: Where it came from, for errors.

        Raises:
            InvalidRequest: Its shape is none that the model's processor takes.
        """
        options: dict[str, Any] = {}
        if detail == "low":
            image = image.copy()
            image.thumbnail((_LOW_DETAIL_SIDE, _LOW_DETAIL_SIDE))
            if self._splits:
                options["do_image_splitting"] = False
        try:
            made = self._of_this_thread()(
                text=self.image_token, images=[image], return_tensors="pt", add_special_tokens=False, **options
            )
        except _ODD_SHAPE as error:
            raise InvalidRequest(
                f"The model's processor takes no image of {image.width}x{image.height} pixels. Crop or scale it.",
                param=param,
            ) from error
        ids: list[int] = made["input_ids"][0].tolist()
        return ProcessedImage(
            token_ids=ids,
            inputs={name: self._compact(name, made[name]) for name in made if name not in _OF_THE_TEXT},
        )

    def _compact(self, name: str, value: Tensor) -> Tensor:
        """Pictures wait in memory for their turn: masks need a byte a pixel, not eight, and colours the model's type."""
        if name.endswith("_mask"):
            return value.bool()
        return value.to(self._type) if value.is_floating_point() else value

    def _of_this_thread(self) -> Any:
        # A tokenizer's settings are changed by each call, which fails when another thread encodes at that moment.
        own = getattr(self._own, "processor", None)
        if own is None:
            own = copy.copy(self.stock)
            own.tokenizer = copy.deepcopy(own.tokenizer)
            self._own.processor = own
        return own


def _read_processor(path: Path) -> Any:
    if importlib.util.find_spec("torchvision") is not None:
        return _PROCESSORS.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return _read_without_videos(path)


def _read_without_videos(path: Path) -> Any:
    """The processor without its part for videos, which needs torchvision; pictures need Pillow alone."""
    files = ModelFiles(path)
    name = next((found for file in _PROCESSOR_FILES if (found := files.json(file).get("processor_class"))), None)
    stock: Any = getattr(transformers, str(name), None)
    if name is None or stock is None or "video_processor" not in stock.get_attributes():
        return _PROCESSORS.from_pretrained(path, local_files_only=True, trust_remote_code=False)

    def check(self: Any, attribute: str, value: object) -> object:
        found: object = None if value is None else stock.check_argument_for_proper_class(self, attribute, value)
        return found

    kind: Any = type(stock.__name__, (stock,), {"check_argument_for_proper_class": check})
    parts = {
        "image_processor": _IMAGE_PROCESSORS.from_pretrained(path, local_files_only=True, trust_remote_code=False),
        "tokenizer": _TOKENIZERS.from_pretrained(path, local_files_only=True, trust_remote_code=False),
        "video_processor": None,
    }
    settings = stock.get_processor_dict(path, local_files_only=True)[0]
    return kind.from_args_and_dict([parts[attribute] for attribute in stock.get_attributes()], settings)
