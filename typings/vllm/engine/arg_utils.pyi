from typing import Any

AsyncEngineArgs: Any
