"""The model: four methods are needed, the rest has defaults (see ``sixfold.core.StepModel``)."""

from collections.abc import Sequence

from sixfold.core import (
    Cost,
    Finish,
    Granted,
    InvalidRequest,
    LoadContext,
    ModelInfo,
    Outcome,
    Request,
    StepModel,
    Usage,
)
from sixfold_reverse.messages import Letter, Reversed, Text


class Running:
    """The state of one text in the batch. Owner: the device thread."""

    def __init__(self, text: str) -> None:
        self.left = text
        self.done = ""


class ReverseModel(StepModel[Running, Text, Letter | Reversed]):
    """Takes one letter of every running text a step."""

    @property
    def info(self) -> ModelInfo:
        """No weights."""
        return ModelInfo(max_model_len=1000)

    def estimate_units(self, request: Request[Text]) -> int:
        """A unit is a letter."""
        return max(1, len(request.input.text))

    def prepare(self, request: Request[Text], piece: object) -> Sequence[Running]:
        """Runs in the pool: here a real model tokenizes or decodes media."""
        if not request.input.text:
            raise InvalidRequest("'text' is empty. Send at least one letter.", param="text")
        return (Running(request.input.text),)

    def cost(self, sequence: Running) -> Cost:
        """One letter a step."""
        return Cost(units=1, min_units=1)

    def step(self, batch: Sequence[Granted[Running]]) -> Sequence[Outcome[Letter | Reversed]]:
        """Here a real model runs one forward for the whole batch."""
        return [self._take_letter(granted.sequence) for granted in batch]

    def _take_letter(self, running: Running) -> Outcome[Letter | Reversed]:
        letter, running.left = running.left[-1], running.left[:-1]
        running.done += letter
        return Outcome(output=Letter(letter), done=not running.left)

    def finish(self, request: Request[Text], sequences: Sequence[Running]) -> Finish[Letter | Reversed]:
        """Runs in the pool, after the text has left the batch."""
        text = sequences[0].done
        return Finish(result=Reversed(text), usage=Usage(counts={"letters": len(text)}))


def load(context: LoadContext) -> ReverseModel:
    """Called in the worker process; ``context.path`` holds the model's files."""
    context.report(1.0, "nothing to load")
    return ReverseModel()
