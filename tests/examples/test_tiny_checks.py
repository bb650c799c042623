import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from examples.train_tiny import clips, scenes
from examples.train_tiny.check_image import check_image
from examples.train_tiny.check_video import check_video
from examples.train_tiny.evaluate_image import held_out_prompts
from examples.train_tiny.render import draw, pack_clips, pack_scenes


def to_pixels(pictures: torch.Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def test_drawn_scenes_pass_their_own_prompt_and_fail_another() -> None:
    rng = random.Random(3)
    drawn = [scenes.sample_scene(rng) for _ in range(300)]
    pictures = to_pixels(draw(*pack_scenes(drawn)))
    passed = [not check_image(picture, scene.prompt) for picture, scene in zip(pictures, drawn, strict=True)]
    fooled = [not check_image(picture, scene.prompt) for picture, scene in zip(pictures, drawn[1:], strict=False)]
    assert sum(passed) >= 299
    assert sum(fooled) <= 1


def test_drawn_clips_pass_their_own_prompt_and_fail_another() -> None:
    rng = random.Random(3)
    drawn = [clips.sample_clip(rng) for _ in range(60)]
    items, backgrounds = pack_clips(drawn)
    frames = to_pixels(draw(items.flatten(0, 1), backgrounds.flatten())).reshape(60, clips.NUM_FRAMES, 64, 64, 3)
    assert all(not check_video(clip, wanted.prompt) for clip, wanted in zip(frames, drawn, strict=True))
    assert sum(not check_video(clip, wanted.prompt) for clip, wanted in zip(frames, drawn[1:], strict=False)) <= 1


@pytest.mark.parametrize(
    ("told", "untrue"),
    [
        ("a small red circle", "a small orange circle"),
        ("a small red circle", "a large red circle"),
        ("a small red circle", "a small red cross"),
        ("a small red circle", "two small red circles"),
        ("on a green background", "on a blue background"),
        ("above", "below"),
        ("above", "left of"),
    ],
)
def test_one_wrong_word_fails_the_image_check(told: str, untrue: str) -> None:
    prompt = "a small red circle above a large blue square on a green background"
    circle = scenes.Item(shape="circle", colour="red", radius_px=6, x_px=30, y_px=14)
    square = scenes.Item(shape="square", colour="blue", radius_px=12, x_px=34, y_px=46)
    scene = scenes.Scene(items=(circle, square), background="green", prompt=prompt, is_held_out=False)
    picture = to_pixels(draw(*pack_scenes([scene])))[0]
    assert check_image(picture, prompt) == []
    assert check_image(picture, prompt.replace(told, untrue))


@pytest.mark.parametrize("motion", ["moving left", "moving up", "moving right slowly", "standing still"])
def test_one_wrong_word_fails_the_video_check(motion: str) -> None:
    rng = random.Random(0)
    item = scenes.Item(shape="circle", colour="red", radius_px=6, x_px=10, y_px=32)
    clip = replace(clips.sample_clip(rng), item=item, background="white", dx_px=2.0, dy_px=0.0)
    items, backgrounds = pack_clips([clip])
    frames = to_pixels(draw(items[0], backgrounds[0]))
    assert check_video(frames, "a red ball moving right quickly on a white background") == []
    assert check_video(frames, f"a red ball {motion} on a white background")


def test_a_picture_with_a_shape_too_many_fails() -> None:
    circle = scenes.Item(shape="circle", colour="red", radius_px=6, x_px=16, y_px=16)
    extra = replace(circle, x_px=48.0)
    scene = scenes.Scene(items=(circle, extra), background="white", prompt="", is_held_out=False)
    assert check_image(to_pixels(draw(*pack_scenes([scene])))[0], "a red circle on a white background")


def test_a_prompt_outside_the_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="Write for example"):
        check_image(np.zeros((64, 64, 3), np.uint8), "a zebra")


def test_held_out_prompts_are_the_same_each_time_and_all_different() -> None:
    prompts = held_out_prompts(50)
    assert prompts == held_out_prompts(50)
    assert len(set(prompts)) == 50
