"""The files that are written are read again by the same library's decoder and by an independent look at their bytes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sixfold.core.errors import ConfigError
from sixfold.plugins.video import encoding
from sixfold.plugins.video.stills import spritesheet, thumbnail
from tests.plugins.video.conftest import decode


def moving_square(num_frames: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    frames = np.full((num_frames, height, width, 3), (20, 160, 40), np.uint8)
    for index in range(num_frames):
        frames[index, 16:48, index * 2 : index * 2 + 32] = (220, 30, 30)
    return frames


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_frames_come_back_in_order_with_their_colours_and_rate(codec: str) -> None:
    frames = moving_square(17)
    data = encoding.encode(iter(frames), fps=8, form=encoding.choose_format(codec))
    back, facts = decode(data)
    assert back.shape == frames.shape
    assert facts["fps"] == 8
    # Chroma has half the resolution: compare inside the square and in the background, away from the edge.
    for index in (0, 8, 16):
        inside = back[index, 20:44, index * 2 + 4 : index * 2 + 28].reshape(-1, 3).mean(0)
        assert np.abs(inside - (220, 30, 30)).max() < 8
        assert np.abs(back[index, :8].reshape(-1, 3).mean(0) - (20, 160, 40)).max() < 8


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_no_thread_becomes_a_realtime_one(codec: str) -> None:
    """SVT-AV1, run by root, makes its threads and its caller real-time: processes that they start then starve all others."""
    script = (
        "import os, sys, numpy as np\n"
        "from sixfold.plugins.video import encoding\n"
        "frames = np.zeros((3, 32, 32, 3), np.uint8)\n"
        f"encoding.encode(frames, fps=8, form=encoding.choose_format({codec!r}))\n"
        "sys.exit(any(os.sched_getscheduler(int(task)) for task in os.listdir('/proc/self/task')))\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_auto_is_h264_in_an_mp4_whose_index_comes_before_its_frames() -> None:
    form = encoding.choose_format("auto")
    assert (form.media_type, form.suffix) == ("video/mp4", ".mp4")
    data = encoding.encode(iter(moving_square(5)), fps=24, form=form)
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    _, facts = decode(data)
    assert (facts["codec"], facts["pix_fmt"], facts["colorspace"]) == ("h264", "yuv420p", 1)
    assert facts["seconds"] == pytest.approx(5 / 24, rel=0.01)


def test_odd_sizes_are_padded_to_even_ones() -> None:
    data = encoding.encode(iter(moving_square(3, 33, 51)), fps=8, form=encoding.choose_format("h264"))
    back, _ = decode(data)
    assert back.shape == (3, 34, 52, 3)
    assert np.abs(back[0, 33].astype(int) - back[0, 32]).max() < 12


def test_frames_are_taken_one_by_one_while_the_encoder_runs() -> None:
    taken: list[int] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for index, frame in enumerate(moving_square(40)):
            taken.append(index)
            if index == 30:
                raise RuntimeError("the source ends")
            yield frame

    with pytest.raises(RuntimeError, match="the source ends"):
        encoding.encode(frames(), fps=8, form=encoding.choose_format("auto"))
    assert len(taken) == 31


def test_a_clip_of_one_frame_is_a_video_and_no_frame_is_a_mistake() -> None:
    form = encoding.choose_format("auto")
    assert decode(encoding.encode(iter(moving_square(1)), fps=8, form=form))[0].shape == (1, 64, 96, 3)
    with pytest.raises(ValueError, match="at least one frame"):
        encoding.encode(iter(()), fps=8, form=form)


def test_a_codec_without_encoder_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"libvpx-vp9"})
    assert encoding.choose_format("auto").container == "webm"
    with pytest.raises(ConfigError, match="libx264"):
        encoding.choose_format("h264")


def test_the_thumbnail_is_the_middle_frame() -> None:
    frames = moving_square(9)
    image = Image.open(io.BytesIO(thumbnail(frames)))
    assert (image.format, image.size) == ("WEBP", (96, 64))
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frames[4]).mean() < 6


def test_the_sprite_sheet_holds_the_frames_row_by_row() -> None:
    frames = np.stack([np.full((32, 32, 3), 25 * index, np.uint8) for index in range(9)])
    image = Image.open(io.BytesIO(spritesheet(frames)))
    assert (image.format, image.size) == ("JPEG", (96, 96))
    pixels = np.asarray(image)
    tiles = [pixels[y * 32 + 16, x * 32 + 16, 0] for y in range(3) for x in range(3)]
    assert np.abs(np.array(tiles, int) - 25 * np.arange(9)).max() < 4


def test_a_long_clip_has_a_hundred_tiles_from_first_to_last() -> None:
    frames = np.zeros((250, 16, 400, 3), np.uint8)
    frames[-1] = 255
    image = Image.open(io.BytesIO(spritesheet(frames)))
    assert image.size == (10 * 160, 10 * 6)
    assert np.asarray(image)[-3, -80, 0] > 240
