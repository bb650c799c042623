"""The services that one model becomes where its prompts are computed by replicas of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

Role = Literal["any", "prefill"]
"""As of `ReplicaRecord`: who answers, and who computes prompts for those."""

TRANSFER_OPTION = "kv_transfer"
"""The option of a model by which its servers hand prompts over."""

_THIS_MACHINE = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleService:
    """Replicas of one model that all do the same.

    Attributes:
        name: Of its own in the cluster.
        model: The registry's name of the model.
        role: What its replicas do.
    """

    name: str
    model: str
    role: Role = "any"

    def transfer(self, *, listen: str, peers: tuple[str, ...] | None) -> dict[str, JsonValue]:
        """The options by which a server of this role hands prompts out, or takes them.

        Args:
            listen: Address that others reach, as ``HOST:PORT``.
            peers: Hosts whose prompts are taken; None for this machine.
        """
        if self.role == "prefill":
            return {TRANSFER_OPTION: {"listen": listen}}
        return {TRANSFER_OPTION: {"peers": list(peers or (_THIS_MACHINE,))}}


def services_of(model: str, *, has_roles: bool) -> tuple[RoleService, ...]:
    """Who answers, and with roles who computes prompts."""
    answers = RoleService(name=model, model=model)
    return (answers, RoleService(name=f"{model}-prefill", model=model, role="prefill")) if has_roles else (answers,)
