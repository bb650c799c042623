"""Judges a picture by its pixels against its prompt. Shares no code with what draws the training pictures.

It reads the prompt with its own grammar, finds the shapes as connected components, and tells colour by the nearest of
its own list, shape by overlap with ideal outlines, size, number and place by the components' boxes.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NAMED_RGB = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
KINDS = {
    "circle": "circle", "circles": "circle", "ball": "circle",
    "square": "square", "squares": "square",
    "triangle": "triangle", "triangles": "triangle",
    "cross": "cross", "crosses": "cross",
}  # fmt: skip
SMALL, LARGE = ("small", "tiny", "little"), ("large", "big")
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
NOUN = re.compile(
    rf"\b(?P<number>{'|'.join(NUMBERS)}) (?:(?P<size>{'|'.join(SMALL + LARGE)}) )?"
    rf"(?P<colour>{'|'.join(NAMED_RGB)}) (?P<kind>{'|'.join(KINDS)})\b"
)
GROUND = re.compile(rf"\bon an? (?P<colour>{'|'.join(NAMED_RGB)}) background\b")
RELATIONS = ("above", "over", "below", "under", "left of", "right of")
NEAREST_LARGE_PX = 16.5  # between the boxes of the largest small shapes and the smallest large ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One noun phrase of a prompt: so many shapes of a colour and kind, of a size if the prompt names one."""

    number: int
    size: str | None
    colour: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One shape in a picture; its place is its box's centre in pixels from the top left corner."""

    colour: str
    kind: str
    box_px: float
    x_px: float
    y_px: float


def read_prompt(prompt: str) -> tuple[list[Wanted], str | None]:
    """Returns what a prompt asks for, in its order, and its background if it names one."""
    text = prompt.lower()
    wanted = [
        Wanted(
            number=NUMBERS[match["number"]],
            size=None if match["size"] is None else "small" if match["size"] in SMALL else "large",
            colour=match["colour"],
            kind=KINDS[match["kind"]],
        )
        for match in NOUN.finditer(text)
    ]
    ground = GROUND.search(text)
    return wanted, ground["colour"] if ground else None


def find_shapes(picture: NDArray[np.uint8], *, min_area_px: int = 20) -> tuple[str, list[Found]]:
    """Returns the background's colour and the shapes of a picture [height, width, 3]."""
    pixels = picture.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    labels, _ = ndimage.label(distance > 40)
    found: list[Found] = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[rows, columns] == number
        if mask.sum() < min_area_px:
            continue
        inside = pixels[rows, columns][mask]
        # The strongest half of the pixels leaves out the blurred rim.
        strength = distance[rows, columns][mask]
        colour = np.median(inside[strength >= np.median(strength)], axis=0)
        # The outline proper is where the colour is more than half way from the ground to the shape.
        crisp = (labels[rows, columns] == number) & (distance[rows, columns] > np.linalg.norm(colour - ground) / 2)
        height, width = _extent(crisp)
        found.append(
            Found(
                colour=nearest_colour(colour),
                kind=nearest_kind(crisp),
                box_px=max(height, width),
                x_px=(columns.start + columns.stop) / 2,
                y_px=(rows.start + rows.stop) / 2,
            )
        )
    return nearest_colour(ground), found


def nearest_colour(rgb: NDArray[np.float64]) -> str:
    """Returns the name of the nearest colour by Euclidean distance in RGB."""
    return min(NAMED_RGB, key=lambda name: float(np.linalg.norm(rgb - np.array(NAMED_RGB[name]))))


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def nearest_kind(mask: NDArray[np.bool_]) -> str:
    """Returns the kind whose ideal outline, stretched to the mask's box, overlaps it best."""
    rows, columns = np.nonzero(mask)
    mask = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = mask.shape
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    ideals = {
        "circle": np.hypot(u - 0.5, v - 0.5) <= 0.5,
        "square": np.ones_like(mask),
        "triangle": np.abs(u - 0.5) <= v / 2,
        "cross": (np.abs(u - 0.5) <= 1 / 6) | (np.abs(v - 0.5) <= 1 / 6),
    }
    return max(ideals, key=lambda kind: float((mask & ideals[kind]).sum() / (mask | ideals[kind]).sum()))


def matches(found: Found, wanted: Wanted) -> bool:
    """Says whether a shape is one that a noun phrase asks for, by colour, kind and size."""
    size = "large" if found.box_px > NEAREST_LARGE_PX else "small"
    return found.colour == wanted.colour and found.kind == wanted.kind and wanted.size in (None, size)


def check_image(picture: NDArray[np.uint8], prompt: str) -> list[str]:
    """Returns what is wrong with a picture [64, 64, 3], empty if it shows what the prompt says.

    Raises:
        ValueError: The prompt names no shape this grammar knows.
    """
    wanted, ground = read_prompt(prompt)
    if not wanted:
        raise ValueError(f"{prompt!r} names no shape. Write for example 'a small red circle on a green background'.")
    seen_ground, found = find_shapes(picture)
    problems: list[str] = []
    if ground is not None and seen_ground != ground:
        problems.append(f"background is {seen_ground}, not {ground}")
    if len(found) != sum(want.number for want in wanted):
        return [*problems, f"{len(found)} shapes, not {sum(want.number for want in wanted)}"]
    text = prompt.lower()
    relation = next((relation for relation in RELATIONS if f" {relation} a" in text), None)
    if len(wanted) == 2 and relation is not None:
        return problems + _check_pair(found, wanted, relation)
    problems += [f"{shape} is not {wanted[0]}" for shape in found if not matches(shape, wanted[0])]
    if len(found) == 1:
        problems += _check_place(found[0], text, picture.shape[0])
    return problems


def _check_pair(found: list[Found], wanted: list[Wanted], relation: str) -> list[str]:
    orders = (found, found[::-1])
    fitting = [order for order in orders if all(matches(*pair) for pair in zip(order, wanted, strict=True))]
    if not fitting:
        return [f"{found} do not fit {wanted}"]
    for first, second in fitting:
        right_px, down_px = second.x_px - first.x_px, second.y_px - first.y_px
        along_px, across_px = (down_px, right_px) if relation in RELATIONS[:4] else (right_px, down_px)
        sign = 1 if relation in ("above", "over", "left of") else -1
        if sign * along_px > abs(across_px):
            return []
    return [f"first is not {relation} second: {found}"]


def _check_place(shape: Found, text: str, height_px: int) -> list[str]:
    problems: list[str] = []
    third_px = height_px / 3
    if "in the center" in text and not all(third_px < place < 2 * third_px for place in (shape.x_px, shape.y_px)):
        problems.append(f"not in the center: {shape}")
    if (" at the top" in text or " in the top" in text) and shape.y_px >= height_px * 0.42:
        problems.append(f"not at the top: {shape}")
    if (" at the bottom" in text or " in the bottom" in text) and shape.y_px <= height_px * 0.58:
        problems.append(f"not at the bottom: {shape}")
    if (" left corner" in text or " on the left" in text) and shape.x_px >= height_px * 0.42:
        problems.append(f"not on the left: {shape}")
    if (" right corner" in text or " on the right" in text) and shape.x_px <= height_px * 0.58:
        problems.append(f"not on the right: {shape}")
    return problems
