"""What a server's two answers to ``GET /load`` say about the time between them."""

from __future__ import annotations

import msgspec

from sixfold.core.autoscaling.load import ModelLoad, ServerLoad


def load_between(before: ServerLoad | None, after: ServerLoad, model: str) -> ModelLoad:
    """The load of one model at one server, its requests in flight averaged since the last look.

    Args:
        before: What the server said then; None, or of another start of it, for no average.
        after: What it says now.
        model: The model's name; one that the server does not have has no load.
    """
    now = _of(after, model)
    if now is None:
        return ModelLoad(model_name=model)
    earlier = None if before is None or before.started_s != after.started_s else _of(before, model)
    if before is None or earlier is None or after.at_s <= before.at_s:
        return now
    mean = (now.request_seconds - earlier.request_seconds) / (after.at_s - before.at_s)
    return msgspec.structs.replace(now, num_in_flight=max(0.0, mean))


def _of(load: ServerLoad, model: str) -> ModelLoad | None:
    return next((each for each in load.models if each.model_name == model), None)
