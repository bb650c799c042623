"""Log probabilities of a prompt's own tokens, for clients that ask how likely a text is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sixfold.plugins.llm.generation import TokenLogprob
from sixfold.plugins.llm.logprobs import RowLogprobs, score
from sixfold.plugins.llm.rows import ScoredSpan
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.token_describer import TokenDescriber

MAX_SCORED_TOKENS = 256
"""Of a sequence in one step: each needs a row of logits as long as the vocabulary."""

# What nothing is before has no probability; the wire says null.
_UNKNOWN = RowLogprobs(chosen=0.0, top_ids=(), top=())


def score_prompts(
    logits: Tensor, sequences: Sequence[SequenceState], spans: Sequence[ScoredSpan], describer: TokenDescriber
) -> Mapping[int, Sequence[TokenLogprob]]:
    """What is known after the step of each sequence's prompt, by its index.

    Args:
        logits: [places of all spans, vocabulary].
        sequences: Of the step.
        spans: In the order of the logits.
        describer: Of the model's tokens.
    """
    rows = [sequences[span.index] for span in spans for _ in range(span.begin, span.end)]
    token_ids = [token for span in spans for token in sequences[span.index].token_ids[span.begin + 1 : span.end + 1]]
    scores = iter(score(logits, rows, token_ids))
    found: dict[int, Sequence[TokenLogprob]] = {}
    for span in spans:
        known = sequences[span.index].token_ids
        first = [describer.describe(known[0], _UNKNOWN)] if span.begin == 0 else []
        rest = [describer.describe(known[place + 1], next(scores)) for place in range(span.begin, span.end)]
        found[span.index] = [*first, *rest]
    return found
