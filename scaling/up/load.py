"""What a server's two answers to ``GET /load`` say about the time between them."""

from __future__ import annotations

import msgspec

from sixfold.core.autoscaling.load import ModelLoad, ServerLoad
from sixfold.scaling.autoscale.step_time import Measured


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
    earlier = _earlier(before, after, model)
    if before is None or earlier is None or after.at_s <= before.at_s:
        return now
    mean = (now.request_seconds - earlier.request_seconds) / (after.at_s - before.at_s)
    return msgspec.structs.replace(now, num_in_flight=max(0.0, mean))


def steps_between(before: ServerLoad | None, after: ServerLoad, model: str) -> Measured | None:
    """The work that one server's steps did for a model since the last look; None without any, or without anything to compare
    with.

    Args:
        before: What the server said then.
        after: What it says now.
        model: The model's name.
    """
    if before is None or after.at_s <= before.at_s:
        return None
    now, earlier = _of(after, model), _earlier(before, after, model)
    if now is None or earlier is None or now.steps is None or earlier.steps is None:
        return None
    steps = now.steps.num_steps - earlier.steps.num_steps
    seconds = now.steps.seconds - earlier.steps.seconds
    if steps <= 0.0 or seconds <= 0.0:  # fewer than before where a worker of the server was replaced
        return None
    return Measured(
        steps=steps,
        prefill_tokens=max(0.0, now.steps.input_tokens - earlier.steps.input_tokens),
        decode_rows=max(0.0, now.steps.output_tokens - earlier.steps.output_tokens),
        kv_tokens=0.0,
        seconds=seconds,
    )


def _earlier(before: ServerLoad | None, after: ServerLoad, model: str) -> ModelLoad | None:
    return None if before is None or before.started_s != after.started_s else _of(before, model)


def _of(load: ServerLoad, model: str) -> ModelLoad | None:
    return next((each for each in load.models if each.model_name == model), None)
