from typing import Any

tokens_input: Any
