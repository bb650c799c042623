"""What every client's script needs: the questions, and a way to answer a cell with what went wrong."""

import json
import traceback

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
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


def answer(cells: dict) -> None:
    """Runs each cell's function and prints what they return."""
    found = {}
    for name, cell in cells.items():
        try:
            found[name] = cell()
        except Exception as error:
            traceback.print_exc()
            found[name] = f"error: {type(error).__name__}: {error}"
    print(json.dumps(found))
