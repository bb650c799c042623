"""A model's name may choose one of its adapters: ``draw:watercolour``."""

from __future__ import annotations

from sixfold.core.errors import ModelNotFound
from sixfold.core.serving.api import Call, ServedModel


async def find_model(call: Call, name: str, operation: str) -> tuple[ServedModel, str | None]:
    """The model and the adapter that its name chooses, if any. A model or alias of the whole name comes first.

    Raises:
        RequestError: See `Call.model`; or the model has no such adapter.
    """
    try:
        return await call.model(name, operation), None
    except ModelNotFound:
        base, colon, adapter = name.rpartition(":")
        if not colon:
            raise
    model = await call.model(base, operation)
    known = str(model.info.details.get("lora", "")).split()
    if adapter not in known:
        has = f"only {', '.join(known)}" if known else "none at all"
        raise ModelNotFound(f"The model {base!r} has no adapter {adapter[:100]!r}, {has}.", param="model")
    return model, adapter
