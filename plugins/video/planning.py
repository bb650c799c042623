"""Turns what a client asked for into one complete `VideoInput`, or says what the model can do instead."""

from __future__ import annotations

import secrets

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.video.capabilities import Capabilities
from sixfold.plugins.video.messages import VideoInput
from sixfold.plugins.video.schema import CreateBody, parse_size


def plan(body: CreateBody, can: Capabilities, *, reference: bytes | None) -> VideoInput:
    """The clip to make: the model's defaults where the client said nothing, a fresh seed where it gave none.

    Sizes and ``num_frames`` that the model cannot make are refused with the nearest possible ones; ``seconds`` is
    rounded to the nearest possible number of frames.

    Raises:
        InvalidRequest: With ``param``.
    """
    fps = body.fps or can.fps
    width, height = _size(body, can)
    return VideoInput(
        prompt=check_prompt(body.prompt, "prompt", can),
        negative_prompt=_negative_prompt(body, can),
        width=width,
        height=height,
        num_frames=_frames(body, can, fps),
        fps=fps,
        num_inference_steps=_steps(body, can),
        guidance_scale=can.guidance_scale if body.guidance_scale is None else body.guidance_scale,
        seed=secrets.randbits(32) if body.seed is None else body.seed,
        reference=_reference(reference, can),
        row_cache_threshold=_row_cache_threshold(body, can),
    )


def seconds_text(request: VideoInput, asked_s: float | None) -> str:
    """The length as the ``seconds`` of an answer: what the client asked for, else what the frames take."""
    return f"{request.num_frames / request.fps if asked_s is None else asked_s:.6g}"


def check_prompt(text: str, param: str, can: Capabilities) -> str:
    """The text as it is.

    Raises:
        InvalidRequest: It is empty or too long.
    """
    if not text.strip():
        raise InvalidRequest(f"{param} is empty. Say what to show.", param=param)
    if len(text) > can.max_prompt_characters:
        raise InvalidRequest(
            f"{param} has {len(text)} characters; at most {can.max_prompt_characters} are taken.",
            param=param,
            code="string_above_max_length",
        )
    return text


def _negative_prompt(body: CreateBody, can: Capabilities) -> str | None:
    text = body.negative_prompt
    if not text:
        return None
    scale = can.guidance_scale if body.guidance_scale is None else body.guidance_scale
    if can.negative_prompt == "never" or (can.negative_prompt == "guided" and scale <= 1):
        why = (
            f"{can.pipeline} does not use one here"
            if can.negative_prompt == "never"
            else f"it has no effect at guidance_scale {scale:g}; use more than 1"
        )
        raise InvalidRequest(f"negative_prompt can't be honoured: {why}. Leave it out.", param="negative_prompt")
    return check_prompt(text, "negative_prompt", can)


def _size(body: CreateBody, can: Capabilities) -> tuple[int, int]:
    if body.size is None:
        return can.width, can.height
    try:
        width, height = parse_size(body.size)
    except ValueError as error:
        raise InvalidRequest(f"size: {error}.", param="size") from None
    if width % can.size_multiple or height % can.size_multiple:
        raise InvalidRequest(
            f"size is {width}x{height}; width and height must be multiples of {can.size_multiple}. The nearest size is "
            f"{can.nearest_side(width)}x{can.nearest_side(height)}.",
            param="size",
        )
    if width * height > can.max_pixels:
        raise InvalidRequest(
            f"size is {width}x{height}, {width * height} pixels; at most {can.max_pixels} are made here.", param="size"
        )
    return width, height


def _frames(body: CreateBody, can: Capabilities, fps: int) -> int:
    param = "seconds" if body.num_frames is None else "num_frames"
    if body.num_frames is not None:
        if body.seconds is not None:
            raise InvalidRequest("Send seconds or num_frames, not both.", param="num_frames")
        frames = body.num_frames
        if can.nearest_frames(frames) != frames:
            raise InvalidRequest(
                f"num_frames is {frames}; {can.pipeline} makes 1 + a multiple of {can.frames_multiple} frames. The "
                f"nearest is {can.nearest_frames(frames)}.",
                param=param,
            )
    elif body.seconds is not None:
        frames = can.nearest_frames(body.seconds * fps)
    else:
        frames = can.num_frames
    if frames > can.max_frames:
        raise InvalidRequest(
            f"{param} asks for {frames} frames at {fps} frames a second; at most {can.max_frames} are made here.",
            param=param,
        )
    return frames


def _steps(body: CreateBody, can: Capabilities) -> int:
    steps = body.num_inference_steps or can.num_inference_steps
    if steps > can.max_steps:
        raise InvalidRequest(
            f"num_inference_steps is {steps}; at most {can.max_steps} are made here.", param="num_inference_steps"
        )
    return steps


def _row_cache_threshold(body: CreateBody, can: Capabilities) -> float | None:
    threshold = can.row_cache_threshold if body.row_cache_threshold is None else body.row_cache_threshold
    if threshold < 0:
        return None
    if not can.row_cache:
        raise InvalidRequest(
            f"row_cache_threshold: the blocks of {can.pipeline} can't be cached. Leave it out.",
            param="row_cache_threshold",
        )
    return threshold


def _reference(reference: bytes | None, can: Capabilities) -> bytes | None:
    if reference is not None and can.image == "no":
        raise InvalidRequest(
            f"This model ({can.pipeline}) makes videos from text alone. Leave input_reference out, or use a model that "
            "takes an image.",
            param="input_reference",
        )
    if reference is None and can.image == "required":
        raise InvalidRequest(
            f"This model ({can.pipeline}) starts from an image. Send it as input_reference.", param="input_reference"
        )
    return reference
