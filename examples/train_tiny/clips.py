"""What the clips show: one shape that moves over a plain background, the prompts that say so, and which are held out."""

import random
from dataclasses import dataclass

from examples.train_tiny.scenes import (
    COLOURS,
    SHAPES,
    SIZE_PX,
    Item,
    decorate,
    is_held_out,
    pick_colour,
    with_article,
)

NUM_FRAMES = 17
RADIUS_PX = {"small": (6.5, 7.5), "large": (10.0, 11.5)}
SIZE_WORDS = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big")}
SPEED_PX = {"slowly": (0.7, 1.0), "quickly": (1.9, 2.3)}
SPEED_WORDS = {"slowly": ("slowly",), "quickly": ("quickly", "fast")}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
SHAPE_WORDS = {
    "circle": ("ball", "ball", "circle"),
    "square": ("square",),
    "triangle": ("triangle",),
    "cross": ("cross",),
}
PREFIXES = ("", "", "", "", "a video of ", "a clip of ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clip: the shape at its first frame, its motion in pixels per frame, and a prompt that says so."""

    item: Item
    background: str
    dx_px: float
    dy_px: float
    prompt: str
    is_held_out: bool


def sample_clip(rng: random.Random) -> Clip:
    """Draws one clip whose shape stays inside the frame from the first frame to the last."""
    background = rng.choice(tuple(COLOURS))
    shape, colour = rng.choice(SHAPES), pick_colour(rng, background)
    size, speed, direction = rng.choice(tuple(RADIUS_PX)), rng.choice(tuple(SPEED_PX)), rng.choice(tuple(DIRECTIONS))
    radius_px, pace_px = rng.uniform(*RADIUS_PX[size]), rng.uniform(*SPEED_PX[speed])
    dx_px, dy_px = (axis * pace_px for axis in DIRECTIONS[direction])
    size_word = "" if rng.random() < 0.3 else rng.choice(SIZE_WORDS[size]) + " "
    prompt = rng.choice(PREFIXES) + with_article(f"{size_word}{colour} {rng.choice(SHAPE_WORDS[shape])}")
    prompt += " " + _motion_words(rng, direction, speed)
    if rng.random() < 0.9:
        prompt += f" on {with_article(background)} background"
    item = Item(
        shape=shape,
        colour=colour,
        radius_px=radius_px,
        x_px=_start_px(rng, radius_px, dx_px),
        y_px=_start_px(rng, radius_px, dy_px),
    )
    return Clip(
        item=item,
        background=background,
        dx_px=dx_px,
        dy_px=dy_px,
        prompt=decorate(rng, prompt),
        is_held_out=is_held_out(f"clip {colour} {shape} {direction} {background}"),
    )


def _motion_words(rng: random.Random, direction: str, speed: str) -> str:
    if direction == "still":
        return "standing still"
    speed_word = "" if rng.random() < 0.4 else " " + rng.choice(SPEED_WORDS[speed])
    return f"moving {direction}{speed_word}"


def _start_px(rng: random.Random, radius_px: float, step_px: float) -> float:
    travel_px = step_px * (NUM_FRAMES - 1)
    return rng.uniform(radius_px + 1 + max(0.0, -travel_px), SIZE_PX - 1 - radius_px - max(0.0, travel_px))
