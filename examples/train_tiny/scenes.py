"""What the still pictures show: scenes of simple shapes, the prompts that describe them, and which are held out."""

import random
import zlib
from dataclasses import dataclass

SIZE_PX = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
RADIUS_PX = {"small": (5.0, 6.5), "large": (10.0, 12.5)}
SIZE_WORDS = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big")}
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
RELATION_WORDS = {
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
}
# Where "at the top" and so on puts a centre: for each axis -1 is the low end, 0 the middle, 1 the high end, None anywhere.
POSITIONS: dict[str, tuple[int | None, int | None]] = {
    "at the top": (None, -1),
    "at the bottom": (None, 1),
    "on the left": (-1, None),
    "on the right": (1, None),
    "in the center": (0, 0),
    "in the top left corner": (-1, -1),
    "in the top right corner": (1, -1),
    "in the bottom left corner": (-1, 1),
    "in the bottom right corner": (1, 1),
}
PREFIXES = ("", "", "", "", "a picture of ", "a drawing of ")
QUADRANTS_PX = ((16.0, 16.0), (48.0, 16.0), (16.0, 48.0), (48.0, 48.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One shape of a scene; the radius is half its width, the centre is in pixels from the top left corner."""

    shape: str
    colour: str
    radius_px: float
    x_px: float
    y_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture: what is in it, and a prompt that says so. ``is_held_out`` scenes never enter training."""

    items: tuple[Item, ...]
    background: str
    prompt: str
    is_held_out: bool


def sample_scene(rng: random.Random) -> Scene:
    """Draws one scene: a single shape, two shapes in a relation, or two to four equal shapes."""
    background = rng.choice(tuple(COLOURS))
    kind = rng.random()
    if kind < 0.3:
        items, words, key = _single(rng, background)
    elif kind < 0.75:
        items, words, key = _pair(rng, background)
    else:
        items, words, key = _several(rng, background)
    prompt = rng.choice(PREFIXES) + words
    if rng.random() < 0.9:
        prompt += f" on {with_article(background)} background"
    return Scene(items=items, background=background, prompt=decorate(rng, prompt), is_held_out=is_held_out(key))


def is_held_out(key: str) -> bool:
    """Says whether a combination belongs to the tenth that is kept for evaluation: by checksum, so it never changes."""
    return zlib.crc32(key.encode()) % 10 == 0


def with_article(words: str) -> str:
    """Puts "a" or "an" in front."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def decorate(rng: random.Random, prompt: str) -> str:
    """Writes some prompts as a person would: with a capital letter, with a full stop."""
    if rng.random() < 0.15:
        prompt = prompt[0].upper() + prompt[1:]
    return prompt + "." if rng.random() < 0.1 else prompt


def pick_size(rng: random.Random) -> tuple[float, str]:
    """Draws a radius in pixels and the word for it with a trailing space; three times in ten the word is left out."""
    size = rng.choice(tuple(RADIUS_PX))
    word = "" if rng.random() < 0.3 else rng.choice(SIZE_WORDS[size]) + " "
    return rng.uniform(*RADIUS_PX[size]), word


def pick_colour(rng: random.Random, background: str) -> str:
    """Draws a colour that shows on the background."""
    return rng.choice([name for name in COLOURS if name != background])


def _single(rng: random.Random, background: str) -> tuple[tuple[Item, ...], str, str]:
    shape, colour = rng.choice(SHAPES), pick_colour(rng, background)
    radius_px, size_word = pick_size(rng)
    words = with_article(f"{size_word}{colour} {shape}")
    x_place, y_place = None, None
    if rng.random() < 0.6:
        position = rng.choice(tuple(POSITIONS))
        words += f" {position}"
        x_place, y_place = POSITIONS[position]
    item = Item(
        shape=shape,
        colour=colour,
        radius_px=radius_px,
        x_px=_place(rng, x_place, radius_px),
        y_px=_place(rng, y_place, radius_px),
    )
    return (item,), words, f"single {colour} {shape} {background}"


def _place(rng: random.Random, place: int | None, radius_px: float) -> float:
    low_px, high_px = radius_px + 1, SIZE_PX - 1 - radius_px
    match place:
        case None:
            return rng.uniform(low_px, high_px)
        case 0:
            return rng.uniform(29, 35)
        case -1:
            return rng.uniform(low_px, 20)
        case _:
            return rng.uniform(44, high_px)


def _pair(rng: random.Random, background: str) -> tuple[tuple[Item, ...], str, str]:
    relation = rng.choice(tuple(RELATION_WORDS))
    kinds = [(rng.choice(SHAPES), pick_colour(rng, background), *pick_size(rng)) for _ in range(2)]
    # Along the relation's axis each shape keeps to its half; across it they stay within 8 px, so "above" is never "left of".
    along: list[float] = []
    for is_far, (_, _, radius_px, _) in zip(_far(relation), kinds, strict=True):
        low_px, high_px = (33 + radius_px, 63 - radius_px) if is_far else (1 + radius_px, 31 - radius_px)
        along.append(rng.uniform(low_px, high_px))
    first_px = rng.uniform(1 + kinds[0][2], 63 - kinds[0][2])
    second_px = min(max(first_px + rng.uniform(-8, 8), 1 + kinds[1][2]), 63 - kinds[1][2])
    items: list[Item] = []
    for (shape, colour, radius_px, _), main_px, cross_px in zip(kinds, along, (first_px, second_px), strict=True):
        x_px, y_px = (main_px, cross_px) if relation in ("left", "right") else (cross_px, main_px)
        items.append(Item(shape=shape, colour=colour, radius_px=radius_px, x_px=x_px, y_px=y_px))
    first, second = (with_article(f"{size_word}{colour} {shape}") for shape, colour, _, size_word in kinds)
    key = "pair " + " ".join(sorted(f"{colour}-{shape}" for shape, colour, _, _ in kinds))
    return tuple(items), f"{first} {rng.choice(RELATION_WORDS[relation])} {second}", key


def _far(relation: str) -> tuple[bool, bool]:
    return (relation in ("below", "right"), relation in ("above", "left"))


def _several(rng: random.Random, background: str) -> tuple[tuple[Item, ...], str, str]:
    count = rng.choice(tuple(COUNT_WORDS))
    shape, colour = rng.choice(SHAPES), pick_colour(rng, background)
    radius_px, size_word = pick_size(rng)
    radius_px = min(radius_px, 11.5)
    spread_px = 14.5 - radius_px
    items = tuple(
        Item(
            shape=shape,
            colour=colour,
            radius_px=radius_px,
            x_px=x_px + rng.uniform(-spread_px, spread_px),
            y_px=y_px + rng.uniform(-spread_px, spread_px),
        )
        for x_px, y_px in rng.sample(QUADRANTS_PX, count)
    )
    return items, f"{COUNT_WORDS[count]} {size_word}{colour} {PLURALS[shape]}", f"several {count} {colour} {shape}"
