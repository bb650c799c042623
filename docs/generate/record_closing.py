"""Prints one form under less and less room: ``python -m docs.generate.record_closing URL [MODEL]``."""

from __future__ import annotations

import json
import sys
from urllib.request import Request, urlopen

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "symptoms": {"type": "array", "items": {"type": "string"}},
        "urgent": {"type": "boolean"},
    },
    "required": ["name", "symptoms", "urgent"],
    "additionalProperties": False,
}
PROMPT = "Anna has a headache, a cough and a fever since Monday. Answer with JSON: name, symptoms, urgent."


def main() -> None:
    """One line a limit."""
    url, model = sys.argv[1].rstrip("/"), (sys.argv[2:] or ["chat"])[0]
    for max_tokens in (64, 32, 24, 20, 16):
        body = {
            "model": model,
            "temperature": 0,
            "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": PROMPT}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "visit", "schema": SCHEMA}},
        }
        request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
        with urlopen(request) as answer:
            (choice,) = json.load(answer)["choices"]
        print(f"max_tokens {max_tokens:2}  {choice['finish_reason']:6}  {choice['message']['content']}")


if __name__ == "__main__":
    main()
