"""Vectors of texts and images equal transformers' own; hostile images are refused by name."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.embedding.clip.model import ClipModel
from sixfold.plugins.embedding.schema import EmbeddingInput, ImageItem, Item, TextItem
from tests.plugins.embedding import clip_models as tiny

TEXTS = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18", "w1 w2", "w4 w3 w2")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_dual_encoder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(path: Path) -> ClipModel:
    return tiny.load_dual_encoder(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return tiny.load_dual_encoder(tiny.save_dual_encoder(tmp_path_factory.mktemp("one"), "clip"))


def image_item(image: Image.Image, **options: Any) -> ImageItem:
    return ImageItem(encoded=base64.b64encode(tiny.file_of(image, **options)).decode())


class Stock:
    """transformers alone, one input at a time."""

    def __init__(self, path: Path) -> None:
        auto: Any = AutoModel
        processors: Any = AutoProcessor
        self._network = auto.from_pretrained(path)
        self._processor = processors.from_pretrained(path)
        self._padding = "max_length" if self._network.config.model_type == "siglip" else False

    @torch.inference_mode()
    def text(self, text: str) -> Any:
        inputs = self._processor(text=[text], padding=self._padding, max_length=16, return_tensors="pt")
        if self._padding:
            inputs.pop("attention_mask", None)
        return self._network.get_text_features(**inputs).pooler_output[0].numpy()

    @torch.inference_mode()
    def image(self, image: Image.Image) -> Any:
        inputs = self._processor(images=[image], return_tensors="pt")
        return self._network.get_image_features(**inputs).pooler_output[0].numpy()


def test_texts_and_images_equal_transformers_alone(path: Path, model: ClipModel) -> None:
    stock = Stock(path)
    pictures = [tiny.picture(1), tiny.picture(2, 24, 24), tiny.picture(3, 90, 31), tiny.picture(4, mode="L")]
    items: tuple[Item, ...] = (*(image_item(p) for p in pictures), *(TextItem(text=text) for text in TEXTS))
    expected: list[Any] = [*(stock.image(p.convert("RGB")) for p in pictures), *(stock.text(text) for text in TEXTS)]
    assert np.ptp(np.stack(expected), axis=0).max() > 0.1, "the oracle must tell the inputs apart"
    np.testing.assert_allclose(tiny.vectors_of(model, EmbeddingInput(items=items)), expected, atol=1e-5)


def test_texts_alone_need_no_items(path: Path, model: ClipModel) -> None:
    stock = Stock(path)
    found = tiny.vectors_of(model, EmbeddingInput(texts=TEXTS))
    np.testing.assert_allclose(found, [stock.text(text) for text in TEXTS], atol=1e-5)


def test_texts_never_share_a_step_with_images(clip: ClipModel) -> None:
    wanted = EmbeddingInput(items=(image_item(tiny.picture(1)), TextItem(text="w1"), image_item(tiny.picture(2))))
    keys = [clip.cost(sequence).batch_key for sequence in tiny.sequences_of(clip, wanted)]
    assert keys[0] == keys[2] != keys[1]


def test_a_photo_is_turned_upright_first(clip: ClipModel) -> None:
    upright = tiny.picture(5, 24, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    turned = image_item(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    found = tiny.vectors_of(clip, EmbeddingInput(items=(turned, image_item(upright))))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_a_data_url_and_fetched_bytes_are_the_same_picture(clip: ClipModel) -> None:
    data = tiny.file_of(tiny.picture(6))
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    found = tiny.vectors_of(clip, EmbeddingInput(items=(ImageItem(encoded=url), ImageItem(data=data))))
    np.testing.assert_array_equal(found[0], found[1])


def test_normalised_vectors_have_length_one(path: Path) -> None:
    found = tiny.vectors_of(tiny.load_dual_encoder(path, normalize=True), EmbeddingInput(texts=TEXTS))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_long_texts_are_cut_when_asked(path: Path, model: ClipModel) -> None:
    text = " ".join(tiny.WORDS)
    found = tiny.vectors_of(model, EmbeddingInput(texts=(text,), truncate_tokens=-1))
    np.testing.assert_allclose(found[0], Stock(path).text(" ".join(tiny.WORDS[:14])), atol=1e-5)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PNG = tiny.file_of(tiny.picture(1))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no picture at all", "is no image"),
        (PNG[:100], "is broken"),
        (PNG[:60] + bytes(40) + PNG[100:], "is broken"),
        (b"%PDF-1.7 no picture", "is no image"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "is no image"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00", "is no image"),
        (bomb(9000, 9000), "9000x9000 pixels; at most"),
        (bomb(60_000, 60_000), "too large"),
    ],
    ids=["text", "cut", "overwritten", "pdf", "wav", "mp4", "bomb", "larger bomb"],
)
def test_bad_images_are_refused_by_their_index(data: bytes, says: str, clip: ClipModel) -> None:
    wanted = EmbeddingInput(items=(TextItem(text="w1"), ImageItem(encoded=base64.b64encode(data).decode())))
    with pytest.raises(InvalidRequest, match=says) as caught:
        tiny.sequences_of(clip, wanted)
    assert caught.value.status == 400
    assert caught.value.param == "input[1].image"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"items": (ImageItem(encoded="§§"),)}, "input[0].image", "neither base64"),
        ({"items": (ImageItem(encoded="data:image/png,raw"),)}, "input[0].image", "must hold base64"),
        ({"items": (ImageItem(encoded="data:video/mp4;base64,AAAA"),)}, "input[0].image", "'video/mp4' is no image"),
        ({"items": (ImageItem(encoded="data:image/png;base64,"),)}, "input[0].image", "is empty"),
        ({"texts": ("w1 " * 15,)}, "input", r"input\[0\] has 17 tokens; the model takes 16"),
        ({"texts": ("w1",) * 257}, "input", "257 items; at most 256"),
        ({"token_ids": ((1, 2),)}, "input", "no token ids"),
        ({"texts": ("w1",), "dimensions": 8}, "dimensions", "nothing for dimensions"),
        ({"texts": ("w1",), "input_type": "query"}, "input_type", "nothing for input_type"),
        ({"texts": ("w1",), "truncate_tokens": 2}, "truncate_prompt_tokens", "above 2"),
    ],
)
def test_bad_input_is_refused_by_name(fields: dict[str, Any], param: str, says: str, clip: ClipModel) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        tiny.sequences_of(clip, EmbeddingInput(**fields))
    assert caught.value.param == param
