"""What a server says about its load, in terms that hold for every modality; what autoscalers decide on."""

from __future__ import annotations

import msgspec

CACHE_USE = "kv_cache_usage_perc"
"""The value of `ReplicaModel.stats` that is the share of the memory for running sequences in use, 0 to 1. A family whose
sequences hold memory between steps declares it as a metric; autoscalers read it."""

INPUT_TOKENS, OUTPUT_TOKENS = "prompt_tokens_total", "generation_tokens_total"
"""Values of `ReplicaModel.stats` that count what steps read of requests and what they wrote of answers. A family whose steps do
both declares both as metrics; autoscalers that give the two to different replicas read them."""


class StepWork(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps of one model did since its server started: sums, whose differences are the work of a time.

    Attributes:
        num_steps: How many there were.
        seconds: Time that devices were busy with them.
        input_tokens: Tokens of requests that they computed; what a cache held is not among them.
        output_tokens: Tokens of answers that they made.
        budget_units: Work that a step may do now, of the replica that may do least.
    """

    num_steps: float = 0.0
    seconds: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    budget_units: float = 0.0


class ModelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load of one model at one server.

    Attributes:
        model_name: The registry's name.
        state: Where the model is in its life, as in ``/ready``.
        num_in_flight: Requests that were admitted and have not ended; fractional where averaged over a time.
        num_waiting: Those of them that no step has served yet.
        request_seconds: Time that all requests so far spent in flight, together. The difference of two samples over the time
            between them is the mean number in flight, which also counts requests that came and went in between.
        queued_units: Admitted work that is not done, in the model's unit: tokens, latent tokens, audio frames.
        units_per_s: Work done per second while there was some; 0 before the first step.
        cache_use: Share of the memory for running sequences in use, of the fullest replica; None where there is none.
        steps: What its steps did; None where its family does not tell requests' tokens from those of answers.
    """

    model_name: str
    state: str = "ready"
    num_in_flight: float = 0.0
    num_waiting: int = 0
    request_seconds: float = 0.0
    queued_units: float = 0.0
    units_per_s: float = 0.0
    cache_use: float | None = None
    steps: StepWork | None = None


class ServerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /load``.

    Attributes:
        server_load: Requests in flight over all models; vLLM's ``/load`` has the same field.
        started_s: When the server started, by its monotonic clock: another value is another incarnation, whose sums start at 0.
        at_s: When the sample was taken, by the same clock.
        models: Each model's load.
    """

    server_load: int
    started_s: float
    at_s: float
    models: tuple[ModelLoad, ...]
