import random

import pytest
import torch
from torch import nn

from examples.train_tiny import clips, scenes, train_image, train_video
from examples.train_tiny.image_model import (
    T5_PAD_TOKENS,
    T5_PADS_EACH,
    CountedPadding,
    ImageDenoiser,
    build_pipeline,
    build_vae,
    tokenize,
)
from examples.train_tiny.tokenizers import build_clip_tokenizer, build_t5_tokenizer, vocabulary
from examples.train_tiny.training import Budget, train


def test_counted_padding_gives_what_the_stock_pipeline_computes() -> None:
    torch.default_generator.manual_seed(0)
    pipeline = build_pipeline(build_vae())
    for parameter in pipeline.transformer.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)  # its outputs are zero when untrained
    prompts = ["a red circle", "two blue squares on a green background"]
    noisy, sigma = torch.randn(2, 8, 16, 16), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
        stock = pipeline.transformer(
            noisy, encoder_hidden_states=text, pooled_projections=pooled, timestep=sigma * 1000, return_dict=False
        )[0]
        pipeline.transformer.set_attn_processor(CountedPadding(num_counted=T5_PAD_TOKENS, times=T5_PADS_EACH))
        ours = ImageDenoiser(pipeline).eval()(noisy, sigma, tokenize(pipeline, prompts))
    assert stock.std() > 0.1
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [build_clip_tokenizer, build_t5_tokenizer])
def test_every_known_word_is_one_token_and_unknown_words_do_no_harm(build: type) -> None:
    tokenizer = build()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary())
    assert len(tokenizer("a zebra, 漢字 and é!").input_ids) > 1


def test_training_never_sees_a_held_out_combination() -> None:
    rng = random.Random(1)
    held_out = [scene.prompt for scene in (scenes.sample_scene(rng) for _ in range(500)) if scene.is_held_out]
    held_out += [clip.prompt for clip in (clips.sample_clip(rng) for _ in range(500)) if clip.is_held_out]
    device = torch.device("cpu")
    image_bank = train_image.build_bank(random.Random(1), 500, device)
    video_bank = train_video.build_bank(random.Random(1), 500, device)
    assert len(held_out) > 50
    assert not set(held_out) & {*image_bank.prompts, *video_bank.prompts}


def test_training_ends_with_the_budget_and_lowers_the_loss() -> None:
    torch.default_generator.manual_seed(0)
    model = nn.Linear(4, 1)
    inputs = torch.randn(64, 4)
    targets = inputs.sum(1, keepdim=True)
    before = (model(inputs) - targets).square().mean()
    budget = Budget(steps=1500, seconds=float("inf"))
    loss = lambda: (model(inputs) - targets).square().mean()  # noqa: E731
    assert train(model, loss, budget=budget, learning_rate=1e-2, label="line") == 1500
    assert (model(inputs) - targets).square().mean() < 0.1 * before
