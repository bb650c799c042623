"""What holds for images whatever the model: one look an image, no look where the prefix is cached, decoding goes on."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sixfold.core.batching.model import Granted
from sixfold.core.errors import InvalidRequest, SourceError, StepFailed
from sixfold.core.family import ModelFiles
from sixfold.plugins.llm.generation import ChatInput, ImagePart
from sixfold.plugins.llm.image_placer import ImagePlacer
from sixfold.plugins.llm.image_processor import ImageProcessor
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.plugin import detect
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.prompt_images import PromptImage, feature_rows, num_visible
from sixfold.plugins.llm.rope_positions import RopePositions, positions_of_step
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.vision import ImageEncoder, VisionTower
from tests.plugins.llm.conftest import numbered
from tests.plugins.llm.vision_models import (
    generate,
    look,
    part,
    picture,
    rendered,
    turn,
    write_vision_model,
)

ONE, OTHER = part(picture(1)), part(picture(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_model(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture
def model(folder: Path, load_tiny: Callable[..., TransformersModel]) -> Iterator[TransformersModel]:
    loaded = load_tiny(folder)
    yield loaded
    loaded.close()


class Gate:
    """Holds every look at an image back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []
        stock = ImageEncoder.encode

        def encode(encoder: ImageEncoder, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
            self.batches.append(len(images))
            self.entered.set()
            assert self.opened.wait(60)
            return stock(encoder, images)

        monkeypatch.setattr(ImageEncoder, "encode", encode)


def cached(driven: Any) -> int:
    return int(driven.finish.usage.counts["cached_tokens"])


def test_the_choices_of_a_request_share_one_look_and_answer_alike(model: TransformersModel, run: Any) -> None:
    (driven,) = run(model, [look("What?", ONE, num_choices=3)])
    assert len(set(driven.texts)) == 1
    assert model.stats()["images_encoded_total"] == 1
    assert driven.finish.usage.counts["prompt_tokens"] > 16  # the image's tokens count


def test_an_image_seen_before_is_found_in_the_cache_and_not_looked_at_again(model: TransformersModel, run: Any) -> None:
    (first,) = run(model, [look("What?", ONE, "Say.")])
    (again,) = run(model, [look("What?", ONE, "Say.")])
    assert again.texts == first.texts
    assert cached(again) >= first.finish.usage.counts["prompt_tokens"] - 16
    assert model.stats()["images_encoded_total"] == 1


def test_another_image_in_the_same_words_shares_only_what_is_before_it(model: TransformersModel, run: Any) -> None:
    words = "Some words that fill a few blocks before the image comes."
    (first,) = run(model, [look(words, ONE, "Say.")])
    (second,) = run(model, [look(words, OTHER, "Say.")])
    assert second.texts != first.texts
    assert cached(second) == len(f"_user\n{words}") // 16 * 16
    assert model.stats()["images_encoded_total"] == 2
    (salted,) = run(model, [look(words, ONE, "Say.", salt="mine")])
    assert (cached(salted), salted.texts) == (0, first.texts)


def test_the_next_turn_of_a_chat_looks_only_at_the_new_image(model: TransformersModel, run: Any) -> None:
    first = look("What?", ONE, "Say it in a few words, please.")
    run(model, [first])
    later = ChatInput(messages=(*first.messages, turn("And this?", OTHER)), params=first.params)
    (driven,) = run(model, [later])
    assert cached(driven) >= 32
    assert model.stats()["images_encoded_total"] == 2


def test_who_loses_memory_needs_no_second_look(model: TransformersModel, run: Any) -> None:
    asked = [look("What?", ONE, num_tokens=20), look(OTHER, "And this?", num_tokens=20), look("None", num_tokens=20)]
    alone = [run(model, [one])[0].texts for one in asked]
    for seed in range(4):
        assert [driven.texts for driven in run(model, asked, seed)] == alone
    assert model.stats()["images_encoded_total"] == 2


def test_decoding_goes_on_while_an_image_is_looked_at(
    model: TransformersModel, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    (seen, *_), (text, *_) = (sequences_of(model, one) for one in (look("What?", ONE), look("Hello")))
    while text.finish_reason is None:
        assert step(model, [seen, text]) >= 1
    assert gate.entered.wait(60)
    assert model.cost(seen) is None  # elsewhere: it asks for no step
    assert seen.num_computed == int(seen.images[0].positions[0])
    gate.opened.set()
    assert seen.images[0].encoding is not None
    seen.images[0].encoding.result(60)
    while seen.finish_reason is None:
        assert step(model, [seen]) == 1
    for sequence in (seen, text):
        model.release(sequence)
    monkeypatch.undo()
    assert [seen.text, text.text] == [run(model, [one])[0].texts[0] for one in (look("What?", ONE), look("Hello"))]


def sequences_of(model: TransformersModel, item: ChatInput) -> Sequence[Any]:
    request = numbered(0, item)
    return [sequence for piece in model.split(request) for sequence in model.prepare(request, piece)]


def step(model: TransformersModel, sequences: Sequence[Any]) -> int:
    """One step of all that ask for one; returns how many did."""
    batch: list[Granted[Any]] = []
    for sequence in sequences:
        cost = model.cost(sequence)
        if cost is not None:
            batch.append(Granted(sequence, model.reserve(sequence, cost.units)))
    for outcome in model.step(batch) if batch else ():
        assert outcome.error is None
    return len(batch)


def test_images_of_one_shape_that_wait_together_share_a_forward(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    prepared = [sequences_of(model, look("What?", part(picture(seed))))[0] for seed in range(5)]
    model.cost(prepared[0])
    assert gate.entered.wait(60)  # the first is looked at, the others wait
    for sequence in prepared[1:]:
        model.cost(sequence)
    gate.opened.set()
    for sequence in prepared:
        sequence.images[0].encoding.result(60)
    assert gate.batches == [1, 4]
    alone = [ImageEncoderOf(model).features(part(picture(seed))) for seed in range(5)]
    for sequence, expected in zip(prepared, alone, strict=True):
        torch.testing.assert_close(sequence.images[0].features, expected, atol=1e-5, rtol=1e-5)
        model.release(sequence)


class ImageEncoderOf:
    """What the model computes for one image alone."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model

    def features(self, image: ImagePart) -> Tensor:
        (sequence,) = sequences_of(self._model, look("What?", image))
        self._model.cost(sequence)
        future = sequence.images[0].encoding
        assert future is not None
        features: Tensor = future.result(60)[0]
        self._model.release(sequence)
        return features


def test_what_nobody_waits_for_any_more_is_not_looked_at(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    first, gone = (sequences_of(model, look("What?", image))[0] for image in (ONE, OTHER))
    model.cost(first)
    assert gate.entered.wait(60)
    model.cost(gone)
    waiting = gone.images[0].encoding
    model.release(gone)
    assert waiting is not None
    assert waiting.cancelled()
    gate.opened.set()
    assert first.images[0].encoding is not None
    first.images[0].encoding.result(60)
    model.release(first)
    assert gate.batches == [1]


def test_an_image_that_the_tower_fails_on_fails_its_request_alone(
    model: TransformersModel, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = ImageEncoder.encode

    def encode(encoder: ImageEncoder, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        if any(float(image["pixel_values"].var(dim=(-2, -1)).max()) < 1e-6 for image in images):
            raise RuntimeError("out of luck")
        return stock(encoder, images)

    expected = run(model, [look("What?", ONE)])[0].texts
    monkeypatch.setattr(ImageEncoder, "encode", encode)
    (bad,) = sequences_of(model, look("What?", part(Image.new("RGB", (50, 50), "red"))))
    (good,) = sequences_of(model, look("Now?", ONE))
    for sequence in (bad, good):
        model.cost(sequence)
        assert sequence.images[0].encoding is not None
        sequence.images[0].encoding.exception(60)
    batch = [Granted(each, model.reserve(each, each.num_uncomputed)) for each in (bad, good)]
    failed, fine = model.step(batch)
    assert isinstance(failed.error, StepFailed)
    assert failed.done
    assert fine.error is None
    for sequence in (bad, good):
        model.release(sequence)
    assert run(model, [look("What?", ONE)])[0].texts == expected


def png(width: int, height: int) -> bytes:
    """A file of a hundred bytes that claims to be of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"no picture", "no image that can be read"),
        (png(8000, 8000), "8000x8000 pixels; at most"),
        (png(60_000, 60_000), "too large"),
        (part(picture(1)).data[:80], "broken"),
    ],
    ids=["empty", "text", "bomb", "larger bomb", "cut"],
)
def test_hostile_files_are_refused_before_they_are_decoded(data: bytes, says: str, model: TransformersModel) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        sequences_of(model, look("What?", ImagePart(data=data, param="messages.0.content.1.image_url.url")))
    assert (caught.value.status, caught.value.param) == (400, "messages.0.content.1.image_url.url")


def test_too_many_images_and_words_that_stand_for_one_are_refused(model: TransformersModel) -> None:
    with pytest.raises(InvalidRequest, match="at most 16 at once"):
        sequences_of(model, look(*[ONE] * 17))
    with pytest.raises(InvalidRequest, match="'<image>', which stands for an image"):
        sequences_of(model, look("What is <image>?", ONE))
    with pytest.raises(InvalidRequest, match="context length"):
        sequences_of(model, look("word " * 100, ONE))


def test_a_model_of_text_says_that_it_reads_no_images(llama: TransformersModel, error_of: Any) -> None:
    error = error_of(llama, look("What?", ONE))
    assert (error.status, error.code) == (400, "unsupported_parameter")
    assert "reads text only" in error.message
    assert llama.info.details["images"] is False


def test_low_detail_bounds_an_image_and_does_not_cut_it(tmp_path: Path) -> None:
    processor = ImageProcessor.load(write_vision_model(tmp_path, "smolvlm"), torch.float32)
    large = picture(1, 700, 600)
    assert len(processor.process(large).token_ids) > len(processor.process(large, detail="low").token_ids)
    assert large.size == (700, 600)


def test_a_template_of_text_alone_gets_marks_where_images_stand(
    folder: Path, tmp_path: Path, load_tiny: Callable[..., TransformersModel], run: Any, model: TransformersModel
) -> None:
    plain = copy_with(folder, tmp_path, "tokenizer_config.json", {})
    (plain / "chat_template.jinja").write_text(
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content.strip() }}</s>\n{% endfor %}{{ '<s>assistant\n' }}"
    )
    loaded = load_tiny(plain)
    assert run(loaded, [look("What ", ONE, "?")])[0].texts == run(model, [look("What ", ONE, "?")])[0].texts
    loaded.close()


def copy_with(folder: Path, target: Path, name: str, changes: Mapping[str, Any]) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    return target


def test_a_processor_that_makes_otherwise_of_several_images_gets_one_at_a_time(folder: Path) -> None:
    class Sharing:
        """Gives half of the tokens for each of two."""

        image_processor = None
        image_token = "<image>"
        tokenizer = None

        def __call__(self, *, images: Sequence[Image.Image], **_others: object) -> dict[str, Tensor]:
            return {"input_ids": torch.zeros(1, 8)}

    limits: dict[str, Any] = {"image_token_id": 258, "max_images": 4, "max_pixels": 10_000}
    stock = ImageProcessor.load(folder, torch.float32)
    assert ImagePlacer(stock, **limits).max_images == 4
    assert ImagePlacer(ImageProcessor(Sharing(), torch.float32), **limits).max_images == 1


def test_models_that_read_images_are_recognized_by_their_files(folder: Path) -> None:
    assert detect(ModelFiles(folder)) == 90


def test_a_folder_without_image_processor_says_what_to_do_and_serves_its_text(
    folder: Path, tmp_path: Path, load_tiny: Callable[..., TransformersModel], run: Any, model: TransformersModel
) -> None:
    bare = copy_with(folder, tmp_path, "config.json", {})
    for name in ("processor_config.json", "preprocessor_config.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(SourceError, match="images: false"):
        load_tiny(bare)
    loaded = load_tiny(bare, images=False)
    assert loaded.info.details["images"] is False
    loaded.close()


def test_the_text_of_a_model_that_reads_images_is_served_alone_if_so_asked(
    tmp_path: Path, load_tiny: Callable[..., TransformersModel], run: Any
) -> None:
    loaded = load_tiny(write_vision_model(tmp_path, "qwen2-vl"), images=False)
    expected = generate(tmp_path, rendered("Hello"), [], 8)
    codec = TextCodec.load(tmp_path)
    (driven,) = run(loaded, [look("Hello")])
    answer = [token.chosen.raw for token in driven.generation.choices[0].logprobs]
    assert answer == [codec.token_bytes(token) for token in expected]
    loaded.close()


def test_generated_tokens_go_on_where_the_positions_of_the_prompt_end() -> None:
    rope = RopePositions(prompt=np.array([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3]]), offset=-2)
    assert np.array_equal(rope.span(4, 8), [[1, 3, 4, 5], [2, 3, 4, 5]])
    assert np.array_equal(rope.span(7, 9), [[5, 6], [5, 6]])
    together = positions_of_step([None, rope], [3, 5], [5, 7])
    assert together is not None
    assert np.array_equal(together, [[3, 4, 3, 4], [3, 4, 3, 4]])
    assert positions_of_step([None, None], [0, 3], [2, 4]) is None


class FakeEncoder(ImageEncoder):
    """Gives one row of ones for each image."""

    def __init__(self) -> None:
        self.num_images = 0

    def encode(self, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        self.num_images += len(images)
        return [torch.ones(1, 2) for _ in images]


def image_at(start: int, length: int, content: bytes = b"c") -> PromptImage:
    positions = np.arange(start, start + length)
    return PromptImage(start=start, end=start + length, positions=positions, content=content, inputs={})


def test_the_device_is_woken_when_an_image_is_encoded_and_only_what_is_needed_is_looked_at() -> None:
    encoder, woken = FakeEncoder(), threading.Event()
    tower = VisionTower(encoder, torch.device("cpu"), num_threads=1)
    tower.attach(woken.set)
    images = [image_at(2, 3), image_at(8, 3)]
    assert tower.num_visible(images, 6) == 2  # the first is behind
    assert woken.wait(60)
    assert encoder.num_images == 1
    assert tower.num_visible(images, 6) is None
    assert num_visible(images, 0) == 2
    tower.close()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.sampled_from([b"a", b"b"])), max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.sampled_from([b"a", b"b"])), max_size=4),
    st.integers(1, 5),
)
def test_blocks_are_known_alike_just_if_their_tokens_and_images_are(
    first: list[tuple[int, int, bytes]], second: list[tuple[int, int, bytes]], block_size: int
) -> None:
    def written(parts: list[tuple[int, int, bytes]]) -> tuple[list[int], list[PromptImage], list[Any]]:
        tokens: list[int] = []
        images: list[PromptImage] = []
        meaning: list[Any] = []
        for gap, length, content in parts:
            tokens += [1] * gap
            meaning += [1] * gap
            images.append(image_at(len(tokens), length, content))
            meaning += [(content, place) for place in range(length)]
            tokens += [0] * length
        return tokens, images, meaning

    sharing = PrefixSharing(mode="shared", block_size=block_size)
    (tokens, images, meaning), (other_tokens, other_images, other_meaning) = written(first), written(second)
    hashes, others = sharing.hashes(tokens, b"", images), sharing.hashes(other_tokens, b"", other_images)
    for index, (one, other) in enumerate(zip(hashes, others, strict=False)):
        end = (index + 1) * block_size
        if meaning[:end] != other_meaning[:end]:
            assert one != other
    again = sharing.hashes(tokens, b"", images)
    assert again == hashes
    assert all(one != other for one, other in zip(hashes, sharing.hashes(tokens, b"salt", images), strict=True))


def test_features_of_an_image_that_is_computed_in_parts_are_those_of_the_part() -> None:
    image = image_at(3, 4)
    image.encoding = Future()
    image.encoding.set_result([torch.arange(8.0).view(4, 2)])
    ((rows, features),) = feature_rows([image], 5, 9)
    assert list(rows) == [0, 1]
    assert torch.equal(features, torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    assert feature_rows([image], 7, 9) == []


def test_adapters_act_where_tokens_are_computed_and_nowhere_else(folder: Path, load_tiny: Callable[..., Any]) -> None:
    # The vision tower runs beside the steps, on rows of its own.
    router = load_tiny(folder, lora={"adapters": {}})._decoder.router
    assert router is not None
    assert any("self_attn" in name for name in router.shapes)
    assert not any("vision" in name for name in router.shapes)
