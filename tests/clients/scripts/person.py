"""What an answer in a form is parsed into by clients that take a class."""

from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person; `cells.PERSON` as a class."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=130)
