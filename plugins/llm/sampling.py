"""The sampling parameters of one sequence, resolved against the model's defaults and ready for vectorised use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sixfold.plugins.llm.generation import SamplingParams
from sixfold.plugins.llm.randomness import new_seed

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What the model's own generation config says about parameters that a request leaves out."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Resolved parameters; the names are those of `SamplingParams`.

    Attributes:
        end_ids: Every token that ends the answer, sorted.
        bias_ids: Token ids of the logit bias.
        bias_values: Its addends, in the same order.
        choice: Index of the choice, so that the choices of one seed differ.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    bias_ids: IntArray
    bias_values: FloatArray
    seed: int
    choice: int
    end_ids: tuple[int, ...]
    min_tokens: int
    num_top_logprobs: int | None

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens seen so far matter."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the likeliest token of the untouched logits is the answer at every step."""
        return (
            self.temperature == 0
            and not self.has_penalties
            and not len(self.bias_ids)
            and self.min_tokens == 0
            and self.num_top_logprobs is None
        )


def resolve_sampling(
    params: SamplingParams, defaults: SamplingDefaults, *, eos_ids: Sequence[int], choice: int, seed: int | None = None
) -> Sampling:
    """Fills in the defaults and lays the parameters out for `sampler`.

    Args:
        params: What the request said.
        defaults: What the model says.
        eos_ids: The model's end tokens.
        choice: Index of the choice within the request.
        seed: Shared by all choices of a request that gives none; drawn if None.
    """

    def pick(value: float | None, default: float) -> float:
        return default if value is None else value

    ends = set(params.stop_token_ids)
    if not params.ignore_eos:
        ends.update(eos_ids)
    if params.seed is not None:
        seed = params.seed
    return Sampling(
        temperature=pick(params.temperature, defaults.temperature),
        top_p=pick(params.top_p, defaults.top_p),
        top_k=defaults.top_k if params.top_k is None else params.top_k,
        min_p=pick(params.min_p, defaults.min_p),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=pick(params.repetition_penalty, defaults.repetition_penalty),
        bias_ids=np.array([token for token, _ in params.logit_bias], dtype=np.int64),
        bias_values=np.array([bias for _, bias in params.logit_bias], dtype=np.float32),
        seed=new_seed() if seed is None else seed,
        choice=choice,
        end_ids=tuple(sorted(ends)),
        min_tokens=params.min_tokens,
        num_top_logprobs=params.num_top_logprobs,
    )
