"""What every client's script needs: the questions, and a way to answer a cell with what went wrong."""

import asyncio
import inspect
import json
import traceback
from collections.abc import Callable

CAPITAL = [{"role": "user", "content": "Name the capital of France."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TEXTS = ["a meal", "a dinner", "an engine"]
SENTENCE = "The patient has no known allergy to penicillin."
QUERY = "Which drug must this patient not get?"
DOCUMENTS = [
    "The weather in Lisbon was mild and dry all week.",
    "The patient is allergic to penicillin and must not receive it.",
    "Our canteen serves soup on Mondays.",
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ANN = "Ann is 30 years old."
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def answer(*cells: Callable[[], object]) -> None:
    """Runs each cell, a function named as the cell is, and prints what they return."""
    found = {}
    for cell in cells:
        try:
            found[cell.__name__] = asyncio.run(cell()) if inspect.iscoroutinefunction(cell) else cell()
        except Exception as error:
            traceback.print_exc()
            found[cell.__name__] = f"error: {type(error).__name__}: {error}"
    print(json.dumps(found))
