"""From a request to the keyword arguments of a stock pipeline; everything a client may have got wrong is refused here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from PIL import Image

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest
from sixfold.core.pictures import flatten, read_picture
from sixfold.core.rendezvous.adapters import Adapters
from sixfold.plugins.image.media import edit_mask
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.roles import Role, Roles
from sixfold.plugins.image.schema import ImageInput, LoraChoice, Quality
from sixfold.plugins.image.sizes import SizeRules

_D: Any = diffusers
_QUALITY: Mapping[Quality, float] = {"low": 0.4, "medium": 1.0, "high": 1.5}
_UPLOAD_FACTOR = 16
_VARIATION_STRENGTH = 0.6
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One picture to draw.

    Attributes:
        role: Draws it.
        arguments: Of the pipeline's call, without generator and callback.
        width: Of the result.
        height: Likewise.
        num_steps: That will run.
        seed: Of the generator.
        text_tokens: Of the prompt.
        adapters: With which the modules run.
        linear_preview: Whether previews are made without the decoder.
        scheduler: Class of the request's own scheduler; None keeps the model's.
    """

    role: Role
    arguments: Mapping[str, Any]
    width: int
    height: int
    num_steps: int
    seed: int
    text_tokens: int
    adapters: Adapters = ()
    linear_preview: bool = False
    scheduler: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Plans pictures. Thread-safe.

    Attributes:
        roles: What the model can do.
        sizes: What it can draw.
        options: The operator's.
        caches_blocks: Whether the model's blocks can be cached.
        previews_linearly: Whether it has previews without the decoder.
    """

    roles: Roles
    sizes: SizeRules
    options: ImageOptions
    caches_blocks: bool
    previews_linearly: bool

    def plan(self, wanted: ImageInput, index: int) -> Drawing:
        """The plan of the picture with this index. [pool]

        Raises:
            InvalidRequest: The request is wrong, or the model can't do it.
        """
        sources = [self._read(data) for data in wanted.images]
        mask = self._mask(wanted, sources)
        role = self.roles.choose(wanted.operation, masked=mask is not None)
        width, height = self._size(wanted, sources)
        steps = self.num_steps(wanted, role)
        arguments: dict[str, Any] = {"num_inference_steps": steps}
        if role.takes("height"):
            arguments |= {"height": height, "width": width}
        if sources:
            steps = self._add_sources(arguments, role, wanted, sources, mask, (width, height), steps)
        self._add_prompts(arguments, role, wanted)
        seed = wanted.seed if wanted.seed is not None else secrets.randbelow(2**32)
        return Drawing(
            role=role,
            arguments=arguments,
            width=width,
            height=height,
            num_steps=steps,
            seed=(seed + index) % (MAX_SEED + 1),
            text_tokens=count_tokens(role.pipeline, wanted.prompt, role.defaults.get("max_sequence_length")),
            adapters=self._adapters(wanted.lora),
            linear_preview=self._linear_preview(wanted),
            scheduler=self._scheduler(role, wanted.scheduler),
        )

    def estimate(self, wanted: ImageInput) -> tuple[int, int, int]:
        """Width, height and steps of a picture, from the request alone: microseconds.

        Raises:
            InvalidRequest: Its figures are out of bounds.
        """
        threshold = wanted.row_cache_threshold
        if threshold is not None and threshold >= 0.0 and not self.caches_blocks:
            raise InvalidRequest(
                "row_cache_threshold: this model's blocks can't be cached. Leave it out.", param="row_cache_threshold"
            )
        if wanted.n > self.options.max_n:
            raise InvalidRequest(f"n is {wanted.n}; at most {self.options.max_n} pictures at once.", param="n")
        roles = self.roles
        role = roles.generate or roles.edit or roles.inpaint
        return (*self.sizes.parse(wanted.size), 30 if role is None else self.num_steps(wanted, role))

    def num_steps(self, wanted: ImageInput, role: Role) -> int:
        """How many steps a request asks for."""
        options = self.options
        steps = wanted.num_inference_steps
        if steps is not None:
            if steps > options.max_inference_steps:
                raise InvalidRequest(
                    f"num_inference_steps is {steps}; at most {options.max_inference_steps}.",
                    param="num_inference_steps",
                )
            return steps
        if wanted.quality in options.quality_steps:
            return options.quality_steps[wanted.quality]
        medium = options.num_inference_steps or int(role.defaults.get("num_inference_steps") or 30)
        return max(1, math.ceil(medium * _QUALITY[wanted.quality]))

    def _read(self, data: bytes) -> Image.Image:
        return read_picture(data, param="image", max_pixels=self.options.max_pixels * _UPLOAD_FACTOR)

    def _mask(self, wanted: ImageInput, sources: list[Image.Image]) -> Image.Image | None:
        if wanted.mask is None:
            # OpenAI's rule: without a mask the transparent part of the image is drawn anew.
            source = sources[0] if wanted.operation == "edit" and sources else None
            if source is not None and source.mode == "RGBA" and source.getchannel("A").getextrema()[0] == 0:
                return edit_mask(source, source.size, param="image") if self.roles.inpaint is not None else None
            return None
        mask = read_picture(wanted.mask, param="mask", max_pixels=self.options.max_pixels * _UPLOAD_FACTOR)
        return edit_mask(mask, sources[0].size, param="mask")

    def _size(self, wanted: ImageInput, sources: list[Image.Image]) -> tuple[int, int]:
        if wanted.size is None and sources:
            return self.sizes.fit(*sources[0].size)
        return self.sizes.parse(wanted.size)

    def _add_sources(
        self,
        arguments: dict[str, Any],
        role: Role,
        wanted: ImageInput,
        sources: list[Image.Image],
        mask: Image.Image | None,
        size: tuple[int, int],
        steps: int,
    ) -> int:
        """Adds what an image pipeline takes; returns the steps that will run."""
        most = max(1, role.max_references)
        if len(sources) > most:
            raise InvalidRequest(f"{len(sources)} images were sent; this model takes {most}.", param="image")
        if role.max_references:
            images = [_checked(flatten(source), role.pipeline) for source in sources]
            arguments["image"] = images if most > 1 else images[0]
        else:
            arguments["image"] = flatten(sources[0]).resize(size, Image.Resampling.LANCZOS)
        if mask is not None:
            arguments["mask_image"] = mask.resize(size, Image.Resampling.NEAREST)
        if not role.takes("strength"):
            if wanted.strength is not None:
                raise InvalidRequest("This model has no strength: it sees the whole image.", param="strength")
            return steps
        default = _VARIATION_STRENGTH if wanted.operation == "vary" else self.options.strength
        strength = wanted.strength if wanted.strength is not None else default
        running = min(int(steps * strength), steps)
        if running < 1:
            raise InvalidRequest(
                f"strength {strength} of {steps} steps leaves none. Ask for more steps or more strength.",
                param="strength",
            )
        arguments["strength"] = strength
        return running

    def _add_prompts(self, arguments: dict[str, Any], role: Role, wanted: ImageInput) -> None:
        arguments["prompt"] = wanted.prompt
        guidance = wanted.guidance_scale if wanted.guidance_scale is not None else self.options.guidance_scale
        true_guidance = role.defaults.get("true_cfg_scale")
        guided = not isinstance(true_guidance, int | float) or true_guidance > 1.0
        name = "true_cfg_scale" if isinstance(true_guidance, int | float) and guided else "guidance_scale"
        if guidance is not None:
            if not role.takes(name):
                raise InvalidRequest("This model has no guidance.", param="guidance_scale")
            arguments[name] = guidance
        negative = wanted.negative_prompt
        if negative is not None and not (role.takes("negative_prompt") and guided):
            raise InvalidRequest("This model has no negative prompt.", param="negative_prompt")
        if name == "true_cfg_scale" and negative is None:
            negative = " "  # these pipelines do without guidance when there is none at all
        if negative is not None:
            arguments["negative_prompt"] = negative

    def _linear_preview(self, wanted: ImageInput) -> bool:
        linear = (wanted.preview or self.options.preview) == "linear"
        if linear and not self.previews_linearly:
            raise InvalidRequest("preview linear: this model has none. Leave preview out.", param="preview")
        return linear

    def _adapters(self, chosen: Sequence[LoraChoice]) -> Adapters:
        known = self.options.lora
        for index, choice in enumerate(chosen):
            if choice.name not in known:
                has = f"only {', '.join(sorted(known))}" if known else "none at all"
                raise InvalidRequest(f"lora: this model has no adapter {choice.name[:100]!r}, {has}.", param="lora")
            if any(choice.name == other.name for other in chosen[:index]):
                raise InvalidRequest(f"lora: {choice.name!r} is given twice; give it once.", param="lora")
        return tuple((choice.name, choice.scale) for choice in chosen)

    def _scheduler(self, role: Role, name: str | None) -> Any:
        name = name or self.options.scheduler
        if name is None:
            return None
        own = role.pipeline.scheduler
        classes: list[Any] = [*own.compatibles, type(own)]
        known = {cls.__name__: cls for cls in classes}
        if name not in known:
            raise InvalidRequest(
                f"scheduler {name[:60]!r}: this model takes {', '.join(sorted(known))}.", param="scheduler"
            )
        return known[name]


def _checked(image: Image.Image, pipeline: Any) -> Image.Image:
    """The image, if the pipeline has nothing against it.

    Raises:
        InvalidRequest: It is too small, too large or too long for the model.
    """
    check = getattr(pipeline.image_processor, "check_image_input", None)
    if check is not None:
        try:
            check(image)
        except ValueError as error:
            raise InvalidRequest(f"The model can't use an image: {error}", param="image") from error
    return image


def count_tokens(pipeline: Any, prompt: str, max_sequence_length: Any) -> int:
    """Tokens of a prompt by the pipeline's tokenizer that takes the longest ones; 0 if it has none.

    Raises:
        ContextLengthExceeded: None of its text encoders would see all of the prompt.
    """
    best: tuple[int, int] = (0, 0)  # (limit, count)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        limit = min(int(getattr(tokenizer, "model_max_length", 0)) or 1 << 30, 1 << 30)
        if isinstance(max_sequence_length, int) and "CLIP" not in type(tokenizer).__name__:
            limit = min(limit, max_sequence_length)
        if limit > best[0]:
            # The backend, not the tokenizer: that keeps padding as state, and others use it at the same time.
            backend = getattr(tokenizer, "backend_tokenizer", None)
            count = len(prompt) // 4 + 1 if backend is None else len(backend_copy(tokenizer).encode(prompt).ids)
            best = (limit, count)
    if best[1] > best[0]:
        raise ContextLengthExceeded(
            f"The prompt has {best[1]} tokens; this model reads {best[0]}. Shorten it.", param="prompt"
        )
    return best[1]


def backend_copy(tokenizer: Any) -> Any:
    """The Rust tokenizer of a fast one without padding and truncation; made once, kept with the tokenizer."""
    copy = tokenizer.__dict__.get("_sixfold_plain")
    if copy is None:
        backend: Any = tokenizer.backend_tokenizer
        copy = backend.__class__.from_str(backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        tokenizer.__dict__["_sixfold_plain"] = copy
    return copy


def generator_for(seed: int) -> torch.Generator:
    """Noise is drawn on the CPU: a seed gives the same picture on every device."""
    return torch.Generator().manual_seed(seed)
