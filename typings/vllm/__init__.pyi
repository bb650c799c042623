"""What is used of vLLM, which is not installed where types are checked: GPU builds pin a torch of their own."""

from typing import Any

SamplingParams: Any
PoolingParams: Any
