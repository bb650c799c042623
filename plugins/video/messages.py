"""What crosses the process border between ``/v1/videos`` and a video model."""

from __future__ import annotations

import msgspec


class VideoInput(msgspec.Struct, frozen=True, kw_only=True, tag="video"):
    """One clip to make; every choice is made, so that a job that runs again after a restart gives the same clip.

    Attributes:
        prompt: What to show.
        negative_prompt: What to keep out; None for nothing.
        width: Of a frame, in pixels.
        height: Likewise.
        num_frames: Of the clip.
        fps: Frames a second of the file.
        num_inference_steps: Denoising steps.
        guidance_scale: In the pipeline's own meaning.
        seed: Of the initial noise.
        reference: Bytes of an image file that the pipeline starts from; None for text alone.
        row_cache_threshold: Of first-block caching; None computes every step.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    reference: bytes | None = None
    row_cache_threshold: float | None = None


class ReferenceCheck(msgspec.Struct, frozen=True, kw_only=True, tag="check"):
    """Asks whether an image can be a clip's reference, before its job is accepted.

    Attributes:
        reference: Bytes of an image file.
        width: Of the clip.
        height: Likewise.
    """

    reference: bytes
    width: int
    height: int


class VideoProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far a clip is.

    Attributes:
        num_steps_done: Denoising steps that are complete.
        num_steps: Denoising steps in all.
    """

    num_steps_done: int
    num_steps: int


class VideoChunk(msgspec.Struct, frozen=True, kw_only=True, tag="chunk"):
    """The next bytes of the finished file.

    Attributes:
        data: At most 256 KiB, so that a large file holds up no other request's events.
    """

    data: bytes


class VideoFile(msgspec.Struct, frozen=True, kw_only=True, tag="file"):
    """A finished clip, after the chunks of its file.

    Attributes:
        num_bytes: Of all chunks.
        media_type: Its type, e.g. ``video/mp4``.
        suffix: Of its name, e.g. ``.mp4``.
        thumbnail: A webp file.
        spritesheet: A jpeg file.
    """

    num_bytes: int
    media_type: str
    suffix: str
    thumbnail: bytes
    spritesheet: bytes


class ReferenceAccepted(msgspec.Struct, frozen=True, kw_only=True, tag="accepted"):
    """The image can be used."""


VideoRequest = VideoInput | ReferenceCheck
VideoOutput = VideoProgress | VideoChunk | VideoFile | ReferenceAccepted
