"""Says whether what a client got from the demo's small models is right, by its content."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from examples.train_tiny.check_image import check_image

SENTENCE = "The patient has no known allergy to penicillin."


def is_list(found: Any) -> bool:
    """Whether it is no error."""
    return isinstance(found, list)


def knows_paris(found: Any) -> None:
    """The answer to what the capital of France is."""
    assert isinstance(found, str)
    assert "Paris" in found, found


def calls_for_weather(found: Any) -> None:
    """A list of calls, each a name and JSON text."""
    assert is_list(found), found
    assert found
    for name, arguments in found:
        assert name == "get_weather"
        assert set(json.loads(arguments)) == {"city"}


def is_person(found: Any) -> None:
    """A person's name and age, as an object or its text."""
    assert not str(found).startswith("error:"), found
    person = json.loads(found) if isinstance(found, str) else found
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 12
    assert 0 <= person["age"] <= 130


def chats_calls_and_fills(found: Any) -> None:
    """All three over another interface."""
    assert not str(found).startswith("error:"), found
    knows_paris(found["chat"])
    calls_for_weather(found["tools"])
    is_person(found["form"])


def are_meals_and_an_engine(found: Any) -> None:
    """Vectors of "a meal", "a dinner" and "an engine", perhaps many times over."""
    assert is_list(found), found
    vectors = np.array(found, dtype=np.float64)
    assert vectors.shape[1] == 384
    meal, dinner, engine = vectors[:3]
    assert meal @ dinner > meal @ engine + 0.2
    np.testing.assert_allclose(vectors, np.tile(vectors[:3], (len(vectors) // 3, 1)), atol=1e-5)


def puts_penicillin_first(found: Any) -> None:
    """Places of the two best of three documents."""
    assert is_list(found), found
    assert len(found) == 2
    assert found[0] == 1


def heard_the_sentence(found: Any) -> None:
    """What was spoken by one model and heard by another."""
    assert isinstance(found, str)
    assert found.strip() == SENTENCE


def is_red_circle(found: Any) -> None:
    """A picture in base64."""
    assert isinstance(found, str)
    assert not found.startswith("error:"), found
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB"))
    assert pixels.shape == (64, 64, 3)
    problems = check_image(pixels, "a red circle")
    assert not problems, problems


def is_clip(found: Any) -> None:
    """An mp4 in base64."""
    assert isinstance(found, str)
    assert not found.startswith("error:"), found
    assert base64.b64decode(found)[4:8] == b"ftyp"
