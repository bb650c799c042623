"""vLLM's routes by which LoRA adapters come and go while a model serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sixfold.core.errors import InvalidRequest, NotFound
from sixfold.core.serving.api import Call, Route, ServedModel
from sixfold.plugins.llm.lora_options import LoraOptions

_STRICT = ConfigDict(extra="forbid", strict=True)


class LoadAdapterBody(BaseModel):
    """Body of ``/v1/load_lora_adapter``."""

    model_config = _STRICT

    lora_name: str = Field(min_length=1)
    """What clients will send as ``model``."""

    lora_path: str = Field(min_length=1)
    """A folder of the server, below one of the model's ``lora.load_from``."""

    model: str | None = None
    """The model that gets it, where several could; beyond vLLM, whose servers have one."""


class UnloadAdapterBody(BaseModel):
    """Body of ``/v1/unload_lora_adapter``."""

    model_config = _STRICT

    lora_name: str = Field(min_length=1)
    """The adapter."""

    lora_int_id: int | None = None
    """vLLM's older way to name it; accepted because the name says all."""


def adapter_routes() -> tuple[Route, ...]:
    """The two routes."""
    return (
        Route(path="/v1/load_lora_adapter", endpoint=load_adapter, body=LoadAdapterBody, media_types=("text/plain",)),
        Route(
            path="/v1/unload_lora_adapter", endpoint=unload_adapter, body=UnloadAdapterBody, media_types=("text/plain",)
        ),
    )


async def load_adapter(call: Call) -> Response:
    """Loads an adapter into all replicas of a model, or into none."""
    body = await call.json(LoadAdapterBody)
    model = await _base(call, body.model)
    await call.adjust(model, _changing(lambda lora: lora.with_adapter(body.lora_name, body.lora_path)))
    return _success(call, f"LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(call: Call) -> Response:
    """Takes an adapter's name away; requests that use it run to their end."""
    body = await call.json(UnloadAdapterBody)
    model = await call.model(body.lora_name, "complete")
    if model.variant is None:
        raise InvalidRequest(f"{body.lora_name!r} is a model, no adapter of one.", param="lora_name")
    _check_allowed(model)
    await call.adjust(model, _changing(lambda lora: lora.without_adapter(body.lora_name)))
    return _success(call, f"LoRA adapter '{body.lora_name}' removed successfully.")


async def _base(call: Call, name: str | None) -> ServedModel:
    """The model that shall get an adapter: the one that is named, or the only one that can."""
    if name is not None:
        model = await call.model(name, "complete")
        _check_allowed(model)
        return model
    able = [model for model in call.models("complete") if _is_allowed(model)]
    if not able:
        raise NotFound(f"No model here may load adapters by this route. {_ADVICE}")
    if len(able) > 1:
        names = ", ".join(model.name for model in able)
        raise InvalidRequest(f"Several models may load adapters: {names}. Name one in 'model'.", param="model")
    return await call.model(able[0].name, "complete")


_ADVICE = "The operator allows it by options.lora.load_from of the model."


def _is_allowed(model: ServedModel) -> bool:
    return model.info.details.get("loads_adapters") is True


def _check_allowed(model: ServedModel) -> None:
    if not _is_allowed(model):
        raise NotFound(f"The adapters of {model.name!r} can't be changed by this route. {_ADVICE}", param="model")


def _changing(change: Callable[[LoraOptions], LoraOptions]) -> Callable[[Any], Any]:
    """The same change to a family's whole options."""
    return lambda options: options.model_copy(update={"lora": change(options.lora)})


def _success(call: Call, message: str) -> Response:
    return call.respond(f"Success: {message}".encode(), media_type="text/plain")
