"""The OpenAPI document: LitServe's own routes as FastAPI describes them, and ours with their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sixfold.core.serving.api import Route, SocketRoute
from sixfold.core.serving.keys import MAX_TENANT

_REFERENCE = "#/components/schemas/{model}"
_CONVERTOR = re.compile(r"\{(\w+):\w+\}")
_PARAMETER = re.compile(r"\{(\w+)\}")
_NO_WORD = re.compile(r"\W+")
_TEXTS = frozenset(("application/json", "text/event-stream", "text/plain"))
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
        (
            "x-tenant",
            "For whom the request is, where the key may act for others: objects, caches and shares are kept apart by it.",
            {"type": "string", "maxLength": MAX_TENANT},
        ),
    )
]


def build_document(app: FastAPI, routes: Sequence[tuple[str, Route | SocketRoute]], *, version: str) -> dict[str, Any]:
    """The whole document.

    Args:
        app: Holds the routes that FastAPI knows.
        routes: Every modality's routes, with the modality's name as tag.
        version: Of the software.
    """
    document: dict[str, Any] = get_openapi(title="Sixfold", version=version, routes=app.routes)
    bodies = {
        body: None for _, route in routes if isinstance(route, Route) for body in (route.body, route.form) if body
    }
    names, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions.get("$defs", {}))
    schemas["Error"] = _ERROR_SCHEMA
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for modality, route in routes:
        path = _CONVERTOR.sub(r"{\1}", route.path)
        method = route.method if isinstance(route, Route) else "GET"
        operation: dict[str, Any] = {
            "tags": [modality],
            "summary": (route.endpoint.__doc__ or route.path).strip().splitlines()[0],
            "operationId": _NO_WORD.sub("_", f"{method}_{route.path}".lower()).strip("_"),
            "security": [{"bearer": []}],
            "parameters": [*_path_parameters(path), *_query_parameters(route.query_params, schemas), *_HEADERS],
            "responses": _responses(route),
        }
        if isinstance(route, Route) and (route.body is not None or route.form is not None):
            content = {
                kind: {"schema": names[(body, "validation")]}
                for kind, body in (("application/json", route.body), ("multipart/form-data", route.form))
                if body is not None
            }
            operation["requestBody"] = {"required": True, "content": content}
        document["paths"].setdefault(path, {}).setdefault(method.lower(), operation)
    return document


def _responses(route: Route | SocketRoute) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}}
    if isinstance(route, SocketRoute):
        good: dict[str, Any] = {"101": {"description": "A WebSocket"}}
    else:
        content = {
            kind: {} if kind in _TEXTS else {"schema": {"type": "string", "format": "binary"}}
            for kind in route.media_types
        }
        good = {"200": {"description": "The answer", "content": content}}
    return {
        **good,
        "4XX": {"description": "The request cannot be served", **error},
        "5XX": {"description": "The server cannot serve it now", **error},
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]


def _query_parameters(query: type[BaseModel] | None, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if query is None:
        return []
    schema = query.model_json_schema(ref_template=_REFERENCE)
    schemas.update(schema.get("$defs", {}))
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": each}
        for name, each in schema.get("properties", {}).items()
    ]
