"""From the settings to a routing policy."""

from __future__ import annotations

from random import Random

from sixfold.scaling.gateway.settings import RoutingSettings
from sixfold.scaling.route.affinity import Affinity
from sixfold.scaling.route.hash_ring import BoundedHash
from sixfold.scaling.route.kv_aware import KvAware
from sixfold.scaling.route.kv_index import KvIndex
from sixfold.scaling.route.load import PowerOfTwo, RoundRobin
from sixfold.scaling.route.policy import Policy
from sixfold.scaling.route.prefix import PrefixAffinity


def build_policy(routing: RoutingSettings, index: KvIndex) -> Policy:
    """The policy that the settings name, with the affinities around those that know caches."""
    guess = PrefixAffinity(routing.remembered_blocks)
    match routing.policy:
        case "round_robin":
            return RoundRobin()
        case "power_of_two":
            return Affinity(PowerOfTwo(Random()))
        case "hash":
            return BoundedHash()
        case "prefix":
            return Affinity(guess)
        case "kv":
            return Affinity(KvAware(index, guess))
