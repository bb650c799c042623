"""The OpenAPI document: LitServe's own routes as FastAPI describes them, and ours with their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from sixfold.core.serving.api import Route

_REFERENCE = "#/components/schemas/{model}"
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_HEADERS: list[dict[str, Any]] = [
    {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
    for name, text, schema in (
        ("x-request-id", "Comes back with the answer and stands in the logs.", {"type": "string", "maxLength": 128}),
        (
            "x-request-timeout-s",
            "Seconds after which the request shall fail with 504; at most the server's own limit.",
            {"type": "number", "exclusiveMinimum": 0},
        ),
        (
            "x-priority",
            "The request's class; a key may not ask for more than its own.",
            {"type": "string", "enum": ["batch", "standard", "interactive"]},
        ),
    )
]


def build_document(app: FastAPI, routes: Sequence[tuple[str, Route]], *, version: str) -> dict[str, Any]:
    """The whole document.

    Args:
        app: Holds the routes that FastAPI knows.
        routes: Every modality's routes, with the modality's name as tag.
        version: Of the software.
    """
    document: dict[str, Any] = get_openapi(title="Sixfold", version=version, routes=app.routes)
    bodies = {route.body: None for _, route in routes if route.body is not None}
    names, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions.get("$defs", {}))
    schemas["Error"] = _ERROR_SCHEMA
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    error = {"content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}}
    for modality, route in routes:
        operation: dict[str, Any] = {
            "tags": [modality],
            "summary": (route.endpoint.__doc__ or route.path).strip().splitlines()[0],
            "operationId": f"{route.method}_{route.path}".lower().replace("/", "_"),
            "security": [{"bearer": []}],
            "parameters": _HEADERS,
            "responses": {
                "200": {"description": "The answer"},
                "4XX": {"description": "The request cannot be served", **error},
                "5XX": {"description": "The server cannot serve it now", **error},
            },
        }
        if route.body is not None:
            schema = names[(route.body, "validation")]
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        document["paths"].setdefault(route.path, {})[route.method.lower()] = operation
    return document
