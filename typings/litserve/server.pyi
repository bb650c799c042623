from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from litserve.api import LitAPI
from litserve.utils import ResponseBufferItem

class LitServer:
    app: FastAPI
    devices: list[str]
    response_buffer: dict[str, ResponseBufferItem]
    litapi_request_queues: dict[str, Any]
    _callback_runner: Any
    def __init__(
        self,
        lit_api: LitAPI | list[LitAPI],
        accelerator: str = "auto",
        devices: int | str = "auto",
        *,
        timeout: float | bool = 30,
    ) -> None: ...
    def lifespan(self, app: FastAPI) -> AbstractAsyncContextManager[None]: ...
    def setup_auth(self, lit_api: LitAPI | None = None) -> Callable[..., Any]: ...
    def run(self, *args: Any, **kwargs: Any) -> None: ...
    def _register_internal_endpoints(self) -> None: ...
    def _register_api_endpoints(self, lit_api: LitAPI, request_type: Any, response_type: Any) -> None: ...
    def _register_spec_endpoints(self, lit_api: LitAPI) -> None: ...
    def _register_middleware(self) -> None: ...
