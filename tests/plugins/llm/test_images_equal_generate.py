"""Models that read images answer on the paged runtime token for token what transformers' own ``generate`` answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sixfold.plugins.llm.generation import ChatInput, CompletionInput
from sixfold.plugins.llm.text_codec import TextCodec
from tests.plugins.llm.vision_models import MODELS, generate, look, part, picture, rendered, write_vision_model

ONE, WIDE, TALL = picture(1), picture(2, 90, 30), picture(3, 33, 70)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_vision_model(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


def names(folder: Path, answers: list[list[int]]) -> list[list[bytes]]:
    codec = TextCodec.load(folder)
    return [[codec.token_bytes(token) for token in ids] for ids in answers]


def named(driven: Any) -> list[bytes]:
    return [token.chosen.raw for token in driven.generation.choices[0].logprobs]


@pytest.mark.parametrize("name", list(MODELS))
def test_answers_about_images_are_those_of_generate_alone_and_in_any_company(
    name: str, folder_of: Callable[[str], Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    folder = folder_of(name)
    asked: list[tuple[Any, ...]] = [
        ("What is ", ONE, "?"),
        (WIDE, "And this"),
        ("No image at all",),
        (TALL, " or ", ONE, "?"),
    ]
    expected = names(
        folder,
        [
            generate(folder, rendered(*parts), [each for each in parts if not isinstance(each, str)], 8)
            for parts in asked
        ],
    )
    assert len(set(map(tuple, expected))) == len(expected)
    inputs: list[ChatInput | CompletionInput] = [
        look(*(each if isinstance(each, str) else part(each) for each in parts)) for parts in asked
    ]
    model = load_tiny(folder, speculation={"method": "off"})
    assert [named(run(model, [one])[0]) for one in inputs] == expected
    for seed in (None, 1, 2):
        fresh = load_tiny(folder)
        assert [named(driven) for driven in run(fresh, inputs, seed)] == expected
        fresh.close()
    model.close()
