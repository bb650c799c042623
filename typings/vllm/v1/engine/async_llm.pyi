from typing import Any

AsyncLLM: Any
