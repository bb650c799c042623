"""instructor: whole objects, by calls and by schema."""

import sys

import instructor
from cells import ANN, answer
from openai import OpenAI
from person import Person

CLIENT = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=300)


def person(mode: instructor.Mode) -> dict:
    """A person that the model makes up of a sentence."""
    made = instructor.from_openai(CLIENT, mode=mode).chat.completions.create(
        model="chat",
        response_model=Person,
        max_retries=0,
        messages=[{"role": "user", "content": ANN}],
    )
    return made.model_dump()


def tools() -> dict:
    return person(instructor.Mode.TOOLS)


def form() -> dict:
    return person(instructor.Mode.JSON_SCHEMA)


answer(tools, form)
