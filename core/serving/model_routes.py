"""``/v1/models``: what clients may ask for, with aliases and variants as ids of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sixfold.core.errors import ModelNotFound
from sixfold.core.serving.context import SCOPE_KEY, ServingContext
from sixfold.core.serving.directory import HostedModel
from sixfold.core.serving.keys import Principal


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    """A model as OpenAI describes it, with what vLLM's clients read and with our own facts."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sixfold"
    root: str
    parent: str | None = None
    permission: tuple[str, ...] = ()
    max_model_len: int | None
    modality: str | None
    capabilities: tuple[str, ...]
    state: str
    memory_bytes: int | None
    parameters: int | None
    details: dict[str, str | int | float | bool]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /v1/models``.

    Attributes:
        object: OpenAI's.
        data: Those that the key may use.
        acts_for_others: Whether requests with this key may say for whom they are (``x-tenant``): gateways look for it.
    """

    object: Literal["list"] = "list"
    data: tuple[ModelObject, ...]
    acts_for_others: bool


class ModelRoutes:
    """The two routes.

    Args:
        context: The server's parts.
    """

    def __init__(self, context: ServingContext) -> None:
        self._context = context

    async def list_models(self, request: Request) -> Response:
        """``GET /v1/models``: only those that the key may use."""
        principal: Principal = request.scope[SCOPE_KEY].principal
        found = tuple(item for model in self._context.directory.models() for item in _objects(model, principal))
        return _json(ModelList(data=found, acts_for_others=principal.acts_for_others))

    async def get_model(self, request: Request) -> Response:
        """``GET /v1/models/{id}``; ids may hold slashes.

        Raises:
            ModelNotFound: There is none of this name that the key may use.
        """
        principal: Principal = request.scope[SCOPE_KEY].principal
        name: str = request.path_params["model_id"]
        model = self._context.directory.find(name)
        if model is None or not principal.may_use(name, model.name):
            raise ModelNotFound(f"The model {name[:200]!r} does not exist. GET /v1/models lists all.", param="model")
        return _json(_object(model, name))


def _objects(model: HostedModel, principal: Principal) -> Iterator[ModelObject]:
    for name in (model.name, *model.aliases, *model.variants):
        if principal.may_use(name, model.name):
            yield _object(model, name)


def _object(model: HostedModel, name: str) -> ModelObject:
    info = model.info
    return ModelObject(
        id=name,
        created=model.created_s,
        root=model.name,
        parent=model.name if name in model.variants else None,
        max_model_len=info.max_model_len if info else None,
        modality=model.family.modality if model.family else None,
        capabilities=tuple(sorted(model.family.operations)) if model.family else (),
        state=model.state.value,
        memory_bytes=info.memory_bytes if info else None,
        parameters=info.parameters if info else None,
        details=dict(info.details) if info else {},
    )


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
