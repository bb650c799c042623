"""Draws scenes and clips as tensors on the device that trains, a whole batch at once: no loader can starve the GPU."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from examples.train_tiny.clips import NUM_FRAMES, Clip
from examples.train_tiny.scenes import COLOURS, SHAPES, SIZE_PX, Item, Scene

MAX_ITEMS = 4
COLOUR_NAMES = tuple(COLOURS)


def pack_scenes(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Turns scenes into numbers for ``draw``.

    Returns:
        Items [scenes, 4, 5] as shape, colour, radius, x, y (a missing item has radius 0), and backgrounds [scenes].
    """
    nothing = (0.0, 0.0, 0.0, 0.0, 0.0)
    rows = [[_row(item) for item in scene.items] + [nothing] * (MAX_ITEMS - len(scene.items)) for scene in scenes]
    return torch.tensor(rows), torch.tensor([COLOUR_NAMES.index(scene.background) for scene in scenes])


def pack_clips(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Turns clips into numbers for ``draw``: items [clips, frames, 1, 5] and backgrounds [clips, frames]."""
    items = torch.tensor([_row(clip.item) for clip in clips])[:, None].repeat(1, NUM_FRAMES, 1)
    step_px = torch.tensor([(clip.dx_px, clip.dy_px) for clip in clips])
    items[:, :, 3:] += step_px[:, None] * torch.arange(NUM_FRAMES)[None, :, None]
    backgrounds = torch.tensor([COLOUR_NAMES.index(clip.background) for clip in clips])
    return items[:, :, None], backgrounds[:, None].repeat(1, NUM_FRAMES)


def _row(item: Item) -> tuple[float, ...]:
    colour, shape = float(COLOUR_NAMES.index(item.colour)), float(SHAPES.index(item.shape))
    return (shape, colour, item.radius_px, item.x_px, item.y_px)


@functools.cache
def _palette(device: torch.device) -> Tensor:
    return torch.tensor(tuple(COLOURS.values()), device=device) / 127.5 - 1


def draw(items: Tensor, backgrounds: Tensor) -> Tensor:
    """Paints a batch of pictures with smooth edges.

    Args:
        items: [batch, items, 5] as packed above, on any device.
        backgrounds: [batch], numbers of colours.

    Returns:
        [batch, 3, 64, 64] in -1 to 1.
    """
    palette = _palette(items.device)
    pixels = torch.arange(SIZE_PX, device=items.device) + 0.5
    canvas = palette[backgrounds][:, :, None, None].expand(-1, 3, SIZE_PX, SIZE_PX)
    for index in range(items.shape[1]):
        shape, colour, radius, x, y = (column[:, None, None] for column in items[:, index].unbind(-1))
        cover = (_depth(shape, radius, pixels[None, None] - x, pixels[None, :, None] - y) + 0.5).clamp(0, 1)
        cover = (cover * (radius > 0))[:, None]
        canvas = canvas * (1 - cover) + palette[colour.flatten().long()][:, :, None, None] * cover
    return canvas


def _depth(shape: Tensor, radius: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """How far inside the outline a pixel lies, in pixels; negative outside."""
    bar = radius / 3
    circle = radius - (dx.square() + dy.square()).sqrt()
    square = 0.9 * radius - torch.maximum(dx.abs(), dy.abs())
    # An upright triangle as high as it is wide: two slanted sides of slope 2 and the base.
    triangle = torch.minimum((dy + radius - 2 * dx.abs()) / 5**0.5, radius - dy)
    across = torch.minimum(radius - dx.abs(), bar - dy.abs())
    cross = torch.maximum(across, torch.minimum(radius - dy.abs(), bar - dx.abs()))
    depths = (circle, square, triangle, cross)
    return sum((depth * (shape == index) for index, depth in enumerate(depths)), torch.zeros_like(circle))
