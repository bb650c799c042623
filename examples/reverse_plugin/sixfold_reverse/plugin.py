"""What Sixfold loads in every process: it names things and imports nothing heavy."""

from collections.abc import Callable

from sixfold.core import Api, Family, Probe, hookimpl
from sixfold_reverse.messages import Letter, Reversed, Text

PROBE = Probe(  # what `pytest --sixfold-plugin reverse` asks
    operation="reverse",
    path="/v1/reverse",
    make_body=lambda model, number: {"model": model, "text": f"word {number}"},
    content=lambda answer: answer["text"],
    stream={"stream": True},
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers one family."""
    register(
        Family(
            name="reverse/letters",
            summary="Reverses text, one letter a step.",
            operations=frozenset({"reverse"}),
            loader="sixfold_reverse.model:load",
            input_type=Text,
            output_type=Letter | Reversed,
            extra="reverse",
            detect=lambda files: 100 if files.has("reverse.json") else 0,
        )
    )


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``POST /v1/reverse``."""
    register(Api(modality="reverse", factory="sixfold_reverse.api:ReverseAPI", probes=(PROBE,)))
