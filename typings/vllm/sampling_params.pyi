from typing import Any

RequestOutputKind: Any
StructuredOutputsParams: Any
