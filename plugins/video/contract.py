"""What a family of video takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``video`` gets a `VideoInput`; each step gives a `VideoProgress`, at the end the bytes of the file come as `VideoChunk`, and the
result is a `VideoFile`: `encoded_clip` makes both. A `ReferenceCheck` asks whether an image can be a clip's reference and ends
with a `ReferenceAccepted`; it only comes where `Capabilities.image` is not ``no``. `ModelInfo.details` must be
`Capabilities.details`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sixfold.plugins.video.capabilities import Capabilities
from sixfold.plugins.video.messages import (
    ReferenceAccepted,
    ReferenceCheck,
    VideoChunk,
    VideoFile,
    VideoInput,
    VideoOutput,
    VideoProgress,
    VideoRequest,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Capabilities",
    "ReferenceAccepted",
    "ReferenceCheck",
    "VideoChunk",
    "VideoFile",
    "VideoInput",
    "VideoOutput",
    "VideoProgress",
    "VideoRequest",
    "encoded_clip",
]

_CHUNK_BYTES = 256 * 1024


def encoded_clip(frames: NDArray[Any], *, fps: int, codec: str) -> tuple[tuple[VideoChunk, ...], VideoFile]:
    """The file of a clip with its stills. Encodes: not for the device thread of a model with others in its batch.

    Args:
        frames: [frames, height, width, 3], RGB, unsigned bytes.
        fps: Frames a second.
        codec: As `Capabilities.codec`.
    """
    from sixfold.plugins.video.encoding import choose_format, encode
    from sixfold.plugins.video.stills import spritesheet, thumbnail

    form = choose_format(codec)
    data = encode(frames, fps=fps, form=form)
    chunks = tuple(VideoChunk(data=data[at : at + _CHUNK_BYTES]) for at in range(0, len(data), _CHUNK_BYTES))
    file = VideoFile(
        num_bytes=len(data),
        media_type=form.media_type,
        suffix=form.suffix,
        thumbnail=thumbnail(frames),
        spritesheet=spritesheet(frames),
    )
    return chunks, file
