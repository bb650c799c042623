from collections.abc import Awaitable
from typing import Any

from litserve.specs.base import LitSpec

class LitAPI:
    stream: bool
    spec: LitSpec | None
    device: str | None
    mcp: object
    def __init__(
        self,
        max_batch_size: int = 1,
        batch_timeout: float = 0.0,
        api_path: str = "/predict",
        stream: bool = False,
        loop: Any = "auto",
        spec: LitSpec | None = None,
        mcp: Any = None,
        enable_async: bool = False,
    ) -> None: ...
    @property
    def api_path(self) -> str: ...
    def setup(self, device: str) -> None: ...
    def decode_request(self, request: Any, **kwargs: Any) -> Any: ...
    def predict(self, x: Any, **kwargs: Any) -> Any: ...
    def encode_response(self, output: Any, **kwargs: Any) -> Any: ...
    def health(self) -> bool | Awaitable[bool]: ...
