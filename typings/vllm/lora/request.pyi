from typing import Any

LoRARequest: Any
