"""Sixfold's decisions as Ray Serve's autoscaling policy; imports nothing of Ray, which hands over all that it needs.

In a deployment's configuration::

    autoscaling_config:
      min_replicas: 0
      max_replicas: 8
      upscale_delay_s: 0      # the policy has windows and delays of its own
      downscale_delay_s: 0
      look_back_period_s: 2   # Serve averages before the policy does: longer hides surges from it
      policy:
        policy_function: sixfold.scaling.autoscale.ray_policy:RayServePolicy
        policy_kwargs: {scaling: {concurrency_target: 16, max_replicas: 8}}

Requests that reach replicas directly are invisible to Serve. A replica reports them by ``record_autoscaling_stats``, which
returns `ray_stats` of its load.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from sixfold.core.autoscaling.load import ModelLoad
from sixfold.core.errors import ConfigError
from sixfold.core.validation import validate
from sixfold.scaling.autoscale.decide import decide, restarted
from sixfold.scaling.autoscale.fleet import Fleet, State
from sixfold.scaling.spec import ScalingSpec

_log = logging.getLogger(__name__)

_STATE = "sixfold"
"""The key of our state in what Serve keeps for a policy."""

_FIELDS = ("num_in_flight", "queued_units", "units_per_s", "cache_use")


class RayContext(Protocol):
    """What Serve's ``AutoscalingContext`` of 2.60 tells that the decision needs."""

    @property
    def deployment_name(self) -> str:
        """For the log."""
        ...

    @property
    def running_replicas(self) -> list[Any]:
        """Identities of the replicas that take requests."""
        ...

    @property
    def target_num_replicas(self) -> int:
        """What was decided last."""
        ...

    @property
    def total_num_requests(self) -> float:
        """Requests that came through handles, those in front of replicas among them."""
        ...

    @property
    def total_queued_requests(self) -> float | None:
        """Of them, those in front of replicas."""
        ...

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]]:
        """What the replicas reported, averaged by Serve."""
        ...

    @property
    def policy_state(self) -> Mapping[str, Any]:
        """What the last decision handed back."""
        ...

    @property
    def current_time(self) -> float | None:
        """Seconds, by Serve's clock."""
        ...


def ray_stats(load: ModelLoad) -> dict[str, float]:
    """What a replica reports by ``record_autoscaling_stats``."""
    return {name: value for name in _FIELDS if (value := getattr(load, name)) is not None}


class RayServePolicy:
    """The policy of one deployment; Serve makes one, and calls it in its controller.

    Args:
        scaling: The keys of `ScalingSpec`.

    Raises:
        ConfigError: A key is unknown or a value is not allowed.
    """

    def __init__(self, scaling: Mapping[str, Any]) -> None:
        self._spec = validate(ScalingSpec, scaling, prefix=("policy_kwargs", "scaling"))
        if self._spec.slo is not None:
            raise ConfigError(
                "policy_kwargs.scaling.slo: Ray Serve tells policies no times, so none can be kept by it. Remove it."
            )

    def __call__(self, context: RayContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and the state for the next call."""
        now_s = context.current_time or 0.0
        fleet = ray_fleet(context)
        found = context.policy_state.get(_STATE)
        state = found if isinstance(found, State) else restarted(fleet, now_s)
        decision = decide(self._spec, state, fleet, now_s)
        if decision.num_replicas != context.target_num_replicas:
            _log.info("%s: %d replicas: %s", context.deployment_name, decision.num_replicas, decision.reason)
        return decision.num_replicas, {_STATE: decision.state}


def ray_fleet(context: RayContext) -> Fleet:
    """The fleet as Serve sees it: reported loads, and requests through handles where these are more."""
    reported = context.aggregated_metrics
    num_held = context.total_queued_requests or 0.0
    # Serve tells the sum over replicas only, and the decision needs no more. It averages both numbers on their own, so that
    # their difference may be negative.
    through_handles = max(0.0, context.total_num_requests - num_held) / max(1, len(context.running_replicas))

    def value(name: str, replica: Any) -> float | None:
        return reported.get(name, {}).get(replica)

    loads = tuple(
        ModelLoad(
            model_name=context.deployment_name,
            num_in_flight=max(value("num_in_flight", replica) or 0.0, through_handles),
            queued_units=value("queued_units", replica) or 0.0,
            units_per_s=value("units_per_s", replica) or 0.0,
            cache_use=value("cache_use", replica),
        )
        for replica in context.running_replicas
    )
    return Fleet(loads=loads, num_starting=max(0, context.target_num_replicas - len(loads)), num_held=num_held)
