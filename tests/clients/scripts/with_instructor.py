"""instructor: whole objects, by calls and by schema."""

import sys

import instructor
from cells import answer
from openai import OpenAI
from pydantic import BaseModel, Field

CLIENT = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=300)


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=130)


def person(mode: instructor.Mode) -> dict:
    """A person that the model makes up of a sentence."""
    made = instructor.from_openai(CLIENT, mode=mode).chat.completions.create(
        model="chat",
        response_model=Person,
        max_retries=0,
        messages=[{"role": "user", "content": "Ann is 30 years old."}],
    )
    return made.model_dump()


answer({"tools": lambda: person(instructor.Mode.TOOLS), "form": lambda: person(instructor.Mode.JSON_SCHEMA)})
