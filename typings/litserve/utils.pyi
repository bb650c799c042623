import asyncio
from collections import deque
from typing import Any

class LitAPIStatus:
    START: str

class LoopResponseType:
    STREAMING: str

class WorkerSetupStatus:
    STARTING: str
    READY: str

class ResponseBufferItem:
    event: asyncio.Event
    response_queue: deque[tuple[Any, Any]]
    response: tuple[Any, Any] | None
    worker_id: int | None
