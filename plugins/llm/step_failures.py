"""What a step says of a sequence that it could not take further."""

from __future__ import annotations

from sixfold.core.batching.model import Outcome
from sixfold.core.errors import StepFailed
from sixfold.plugins.llm.generation import Generation, TextDelta
from sixfold.plugins.llm.sequence import SequenceState


def unseen(sequence: SequenceState) -> Outcome[TextDelta | Generation]:
    """The outcome of a sequence that has nothing to compute: it waits for an image, or one of them failed."""
    for image in sequence.images:
        if image.failure is not None:
            error = StepFailed(
                "The model failed on an image of this request. The server's log has the reason under the request's id."
            )
            error.__cause__ = image.failure
            return Outcome(done=True, error=error)
    return Outcome()


def step_failed(sequence: SequenceState, grammar_failure: str | None) -> StepFailed:
    """The error of a sequence that has no next token.

    Args:
        sequence: Which.
        grammar_failure: What its grammar says, if that is why.
    """
    if grammar_failure is not None:
        return StepFailed(f"The answer's form could not be followed any further: {grammar_failure}")
    what = "no finite probabilities for this request"
    if sequence.grammar is not None:
        what += ", or its vocabulary can't spell what the answer's form wants next"
    return StepFailed(f"The model gave {what}. Shorten or change the input.")
