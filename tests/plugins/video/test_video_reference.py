"""Foreign image bytes: what is taken, and what is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.video.reference import read_reference


def image_bytes(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A png of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def refusal(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_reference(data, width=32, height=16)
    assert caught.value.param == "input_reference"
    return caught.value


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_png_jpeg_and_webp_are_taken(form: str) -> None:
    data = image_bytes(Image.new("RGB", (32, 16), (200, 30, 40)), form)
    image = read_reference(data, width=32, height=16)
    assert (image.mode, image.size) == ("RGB", (32, 16))


def test_a_photo_is_turned_upright_before_its_size_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    data = image_bytes(Image.new("RGB", (16, 32)), "JPEG", exif=exif.tobytes())
    assert read_reference(data, width=32, height=16).size == (32, 16)


def test_transparency_becomes_white() -> None:
    data = image_bytes(Image.new("RGBA", (32, 16), (0, 0, 0, 0)), "PNG")
    assert read_reference(data, width=32, height=16).getpixel((3, 3)) == (255, 255, 255)


def test_another_size_is_refused_with_both_sizes() -> None:
    error = refusal(image_bytes(Image.new("RGB", (33, 16)), "PNG"))
    assert error.code == "size_mismatch"
    assert "33x16" in error.message and "32x16" in error.message


@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    assert refusal(bomb(side)).code == "image_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        b"GIF89a" + b"\0" * 100,
        image_bytes(Image.new("RGB", (32, 16)), "PNG")[:50],
        image_bytes(Image.effect_noise((32, 16), 50).convert("RGB"), "JPEG")[:-200],
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=["empty", "text", "gif", "cut png", "cut jpeg", "svg"],
)
def test_what_is_no_whole_image_is_refused(data: bytes) -> None:
    assert "input_reference" in refusal(data).message
