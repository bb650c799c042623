"""Finds the model that a request names, or says why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ModelNotFound, NotReady, PermissionDenied
from sixfold.core.family import Family
from sixfold.core.serving.directory import Directory, HostedModel, ModelState
from sixfold.core.serving.keys import Principal

_MAX_NAMES = 20


@dataclass(frozen=True, slots=True)
class NamedModel:
    """`sixfold.core.serving.api.ServedModel`: a hosted model under the name that the client used."""

    name: str
    hosted: HostedModel
    family: Family
    info: ModelInfo

    @property
    def variant(self) -> str | None:
        """The name, if it is that of a variant."""
        return self.name if self.name in self.hosted.variants else None


def find_hosted(directory: Directory, principal: Principal, name: str, operation: str) -> HostedModel:
    """The model of this name, alias or variant, if it takes requests or can be loaded for one.

    Raises:
        ModelNotFound: No such model, or it does not offer the operation.
        PermissionDenied: The key may not use it.
        NotReady: It loads for the first time, is draining or failed to load.
    """
    hosted = directory.find(name)
    if hosted is None:
        raise ModelNotFound(
            f"The model {name[:200]!r} does not exist. {_offers(directory, principal, operation)}", param="model"
        )
    if not principal.may_use(name, hosted.name):
        raise PermissionDenied(
            f"The key may not use the model {name!r}. GET /v1/models lists what it may.", param="model"
        )
    family = hosted.family
    if family is not None and operation not in family.operations:
        can = ", ".join(sorted(family.operations))
        raise ModelNotFound(
            f"The model {name!r} does not offer {operation!r}, only: {can}. {_offers(directory, principal, operation)}",
            param="model",
        )
    if family is None or (hosted.state is not ModelState.READY and not hosted.loads_on_demand):
        raise not_ready(hosted, name)
    return hosted


def named_model(hosted: HostedModel, name: str) -> NamedModel:
    """A model that is loaded, under the name that the client used.

    Raises:
        NotReady: It is not.
    """
    if hosted.info is None or hosted.family is None:
        raise not_ready(hosted, name)
    return NamedModel(name, hosted, hosted.family, hosted.info)


def usable_models(directory: Directory, principal: Principal, operation: str) -> tuple[NamedModel, ...]:
    """All models that offer the operation and may be used, in the order of the configuration: those that are ready, and those
    that were and can be loaded again."""
    return tuple(
        NamedModel(hosted.name, hosted, hosted.family, hosted.info)
        for hosted in directory.models()
        if (hosted.state is ModelState.READY or hosted.loads_on_demand)
        and hosted.family is not None
        and hosted.info is not None
        and operation in hosted.family.operations
        and principal.may_use(hosted.name, *hosted.aliases)
    )


def _offers(directory: Directory, principal: Principal, operation: str) -> str:
    names = [
        model.name
        for model in directory.models()
        if model.family is not None
        and operation in model.family.operations
        and principal.may_use(model.name, *model.aliases)
    ]
    if not names:
        return f"No model here offers {operation!r}."
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"Models that offer {operation!r}: {', '.join(names[:_MAX_NAMES])}{more}."


def not_ready(hosted: HostedModel, name: str) -> NotReady:
    """What a request is told whose model can't be used now."""
    if hosted.state is ModelState.FAILED:
        return NotReady(
            f"The model {name!r} could not be loaded. Ask the operator; the log says why.", code="model_failed"
        )
    if hosted.state is ModelState.DRAINING:
        return NotReady(f"The model {name!r} is being removed.", code="draining", retry_after_s=1.0)
    return NotReady(f"The model {name!r} is still loading. Try again soon.", code="loading", retry_after_s=5.0)
