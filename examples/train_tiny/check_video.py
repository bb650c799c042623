"""Judges a clip by its pixels against its prompt: follows the shape from frame to frame and measures its path."""

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from examples.train_tiny.check_image import LARGE, SMALL, Found, find_shapes, read_prompt

MOTION = re.compile(
    r"\b(?:moving (?P<direction>left|right|up|down)(?: (?P<speed>slowly|quickly|fast))?|standing still)"
)
HEADINGS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL_PX = 4.0  # a shape that moves less than this from first to last frame stands still
QUICK_PX = 23.0  # between the longest slow path and the shortest quick one over 17 frames
LARGE_PX = 16.9  # between the widest small circle and the narrowest large square


def follow(frames: NDArray[np.uint8]) -> tuple[str, list[Found], list[str]]:
    """Returns the usual background, the one shape of each frame, and the frames' problems.

    Args:
        frames: [frames, height, width, 3].
    """
    grounds, path, problems = list[str](), list[Found](), list[str]()
    for number, frame in enumerate(frames):
        ground, found = find_shapes(frame)
        grounds.append(ground)
        if len(found) == 1:
            path.append(found[0])
        else:
            problems.append(f"frame {number} shows {len(found)} shapes")
    return Counter(grounds).most_common(1)[0][0], path, problems


def check_video(frames: NDArray[np.uint8], prompt: str) -> list[str]:
    """Returns what is wrong with a clip [frames, 64, 64, 3], empty if it shows what the prompt says.

    Raises:
        ValueError: The prompt names no shape or no motion this grammar knows.
    """
    wanted, ground = read_prompt(prompt)
    motion = MOTION.search(prompt.lower())
    if len(wanted) != 1 or motion is None:
        raise ValueError(f"{prompt!r} is not of the form 'a red ball moving right on a green background'.")
    seen_ground, path, problems = follow(frames)
    if problems:
        return problems
    if ground is not None and seen_ground != ground:
        problems.append(f"background is {seen_ground}, not {ground}")
    colours = Counter(found.colour for found in path)
    kinds = Counter(found.kind for found in path)
    # A frame between two pixels can blur a small shape, so each property must hold in four frames of five.
    if colours[wanted[0].colour] < 0.8 * len(frames):
        problems.append(f"colour is {colours}, not {wanted[0].colour}")
    if kinds[wanted[0].kind] < 0.8 * len(frames):
        problems.append(f"shape is {kinds}, not {wanted[0].kind}")
    box_px = float(np.median([found.box_px for found in path]))
    if wanted[0].size is not None and (box_px > LARGE_PX) != (wanted[0].size == "large"):
        problems.append(f"box of {box_px:.0f} px is not {wanted[0].size} ({' '.join(SMALL + LARGE)} are known)")
    return problems + _check_motion(path, motion["direction"], motion["speed"])


def _check_motion(path: list[Found], direction: str | None, speed: str | None) -> list[str]:
    places = np.array([(found.x_px, found.y_px) for found in path])
    moved = places[-1] - places[0]
    length_px = float(np.linalg.norm(moved))
    if direction is None:
        spread_px = float(np.ptp(places, axis=0).max())
        return [] if spread_px < STILL_PX else [f"moves by {spread_px:.1f} px, should stand still"]
    problems: list[str] = []
    heading = np.array(HEADINGS[direction], dtype=np.float64)
    along_px = places @ heading
    if moved @ heading < 0.9 * length_px or length_px < STILL_PX:
        problems.append(f"moves by {moved}, not {direction}")
    elif np.diff(along_px).min() < -1.5:
        problems.append(f"jumps back on its way {direction}")
    if speed is not None and (length_px > QUICK_PX) != (speed in ("quickly", "fast")):
        problems.append(f"path of {length_px:.0f} px is not {speed}")
    return problems
