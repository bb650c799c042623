"""What is special about the modules of diffusers' image pipelines, as data for the engine."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sixfold.core.rendezvous.calls import CallRules, TextPadding
from sixfold.core.rendezvous.scoped import LanePart, PipelinePlan
from sixfold.core.runtime.quantization.policy import patterns

DENOISERS = frozenset({"transformer", "transformer_2", "unet", "controlnet"})

QUANTIZATION_SKIP = patterns("embedder", "modulation", "output", r"re:.*\.img_mlp\.net\.2")
"""Linear layers of denoisers that keep their type: small, and an error in them reaches every token; the last one is Qwen's."""
_IDS = frozenset({"img_ids", "txt_ids", "image_rotary_emb"})
_ALONE = frozenset({"_get_last_decoder_hidden_states", "generate_prior_tokens"})
"""JoyImage's hooks its text encoder, GLM-Image's keeps the prompt's length in its language model and seeds torch."""


def plan(text_multiple: int) -> PipelinePlan:
    """Which components batch and which have a lane, and the rules of calls. Text encoders run in the pipelines' threads.

    Args:
        text_multiple: See `ImageOptions`.
    """
    # Both ways: some autoencoders keep the state of a running pass in the module. A distribution has no rows to cut.
    both = {"decode": CallRules(ignored=frozenset({"generator"})), "encode": CallRules(merges=False)}
    return PipelinePlan(
        batched=DENOISERS,
        lanes={"vae": LanePart(methods=both)},
        alone=_ALONE,
        rules=call_rules(text_multiple),
    )


def call_rules(text_multiple: int) -> Mapping[str, CallRules]:
    """By the class name of the denoiser. Classes that are not here need none."""
    flat_ids = CallRules(shared=_IDS)
    text = TextPadding(states="encoder_hidden_states", mask="encoder_hidden_states_mask", multiple=text_multiple)
    return {
        "FluxTransformer2DModel": flat_ids,
        "Flux2Transformer2DModel": flat_ids,
        "ChromaTransformer2DModel": flat_ids,
        "BriaTransformer2DModel": flat_ids,
        "OvisImageTransformer2DModel": flat_ids,
        "LongCatImageTransformer2DModel": flat_ids,
        "CogView4Transformer2DModel": flat_ids,
        "HunyuanDiT2DModel": CallRules(shared=_IDS),
        "QwenImageTransformer2DModel": CallRules(row_lists=frozenset({"img_shapes"}), text_padding=text),
        "ZImageTransformer2DModel": CallRules(times=frozenset({"t"}), ragged=frozenset({"x", "cap_feats"})),
        # Attention runs on a quarter of the latent's positions and fewer.
        "UNet2DConditionModel": CallRules(units_per_row=_quarter),
        "SD3Transformer2DModel": CallRules(units_per_row=_quarter),
        "PixArtTransformer2DModel": CallRules(units_per_row=_quarter),
    }


def _quarter(row: Tensor) -> int:
    return max(1, row.shape[-2] * row.shape[-1] // 4)
