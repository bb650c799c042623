"""From a request's resolved sampling to vLLM's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sixfold.plugins.llm.generation import SamplingParams
from sixfold.plugins.llm.sequence import SequenceState

# To vLLM -1 is no seed, and seeds go through 64 bits with a sign.
_SEEDS = 2**62


def sampling_arguments(params: SamplingParams, state: SequenceState, *, keeps_markers: bool) -> Mapping[str, Any]:
    """The keyword arguments of vLLM's ``SamplingParams`` for one choice, but for the kind of output.

    Args:
        params: What the request said.
        state: The choice as the native runtime would run it: it holds the resolved values.
        keeps_markers: Whether special tokens in the answer are text, for the parser of calls and reasoning.
    """
    sampling = state.sampling
    return {
        "max_tokens": state.max_output_tokens,
        "min_tokens": min(sampling.min_tokens, state.max_output_tokens),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": dict(params.logit_bias) or None,
        # Only a seed that was asked for: with one, vLLM draws row by row.
        "seed": None if params.seed is None else (params.seed + sampling.choice) % _SEEDS,
        "stop": list(params.stop) or None,
        # All end tokens, the model's own included, as the request and the model's files say: vLLM's own idea of an end
        # token is not asked, so that one rule holds in both families.
        "stop_token_ids": list(sampling.end_ids) or None,
        "ignore_eos": True,
        "logprobs": sampling.num_top_logprobs,
        "detokenize": True,
        "skip_special_tokens": not keeps_markers,
    }
