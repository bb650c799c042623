"""instructor, whose pins conflict with those of OpenAI's newer client, in a Python of its own: it gets whole objects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.models, pytest.mark.slow]

VERSION = "1.17.0"
SCRIPT = """
import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=130)
    role: Literal["doctor", "nurse"]


client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
found = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    person = instructor.from_openai(client, mode=mode).chat.completions.create(
        model="chat",
        response_model=Person,
        max_retries=0,
        messages=[{"role": "user", "content": "Ann, a nurse, is 30 years old."}],
    )
    found[mode.name] = person.model_dump()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with instructor and what it pins."""
    venv = tmp_path_factory.mktemp("instructor") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    made = venv / "bin" / "python"
    subprocess.run([made, "-m", "pip", "install", "--quiet", f"instructor=={VERSION}"], check=True, timeout=600)
    return made


def test_instructor_gets_objects_by_tools_and_by_schema(python: Path, demo_server: Any, tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [python, script, f"{demo_server.url}/v1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for person in json.loads(done.stdout).values():
        assert set(person) == {"name", "age", "role"}
        assert person["role"] in ("doctor", "nurse")
