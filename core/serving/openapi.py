"""The OpenAPI document: LitServe's own routes as FastAPI describes them, and ours with their bodies."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from sixfold.core.serving.api import Route, SocketRoute
from sixfold.core.serving.keys import MAX_TENANT

_REFERENCE = "#/components/schemas/{model}"
_CONVERTOR = re.compile(r"\{(\w+):\w+\}")
_PARAMETER = re.compile(r"\{(\w+)\}")
_NO_WORD = re.compile(r"[\W_]+")
_TEXTS = ("application/json", "text/")
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

_ERRORS = {
    status: {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}},
    }
    for status, text in (("4XX", "The request cannot be served"), ("5XX", "The server cannot serve it now"))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRoute:
    """A GET route of the server itself.

    Attributes:
        path: Starlette's path.
        endpoint: Answers; its docstring tells what with.
        media_types: Of the answer.
        answer: As in `Route`.
        statuses: With which it comes.
        needs_key: Whether it does where there are keys.
    """

    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    media_types: tuple[str, ...] = ("application/json",)
    answer: Any = None
    statuses: tuple[int, ...] = (200,)
    needs_key: bool = True


def build_document(
    app: FastAPI, routes: Sequence[tuple[str, Route | SocketRoute]], *, version: str, own: Sequence[OwnRoute] = ()
) -> dict[str, Any]:
    """The whole document.

    Args:
        app: Holds the routes that FastAPI knows.
        routes: Every modality's routes, with the modality's name as tag.
        version: Of the software.
        own: The server's own routes.
    """
    document: dict[str, Any] = get_openapi(title="Sixfold", version=version, routes=app.routes)
    http = [route for _, route in routes if isinstance(route, Route)]
    bodies = {body: None for route in http for body in (route.body, route.form) if body}
    names, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions.get("$defs", {}))
    answers = _answer_schemas(
        [answer for answer in (*(r.answer for r in http), *(r.answer for r in own)) if answer is not None], schemas
    )
    schemas["Error"] = _ERROR_SCHEMA
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    paths = document["paths"]
    for each in own:
        paths.setdefault(_plain(each.path), {})["get"] = {
            **_head("server", "GET", each.path, each.endpoint),
            "security": [{"bearer": []}] if each.needs_key else [],
            "parameters": _path_parameters(_plain(each.path)),
            "responses": _responses(each.media_types, answers.get(each.answer), each.statuses),
        }
    for modality, route in routes:
        method = route.method if isinstance(route, Route) else "GET"
        operation: dict[str, Any] = {
            **_head(modality, method, route.path, route.endpoint),
            "security": [{"bearer": []}],
            "parameters": [
                *_path_parameters(_plain(route.path)),
                *_query_parameters(route.query_params, schemas),
                *_HEADERS,
            ],
            "responses": _responses(route.media_types, answers.get(route.answer))
            if isinstance(route, Route)
            else {"101": {"description": "A WebSocket"}, **_ERRORS},
        }
        if isinstance(route, Route) and (route.body is not None or route.form is not None):
            content = {
                kind: {"schema": names[(body, "validation")]}
                for kind, body in (("application/json", route.body), ("multipart/form-data", route.form))
                if body is not None
            }
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(_plain(route.path), {}).setdefault(method.lower(), operation)
    _link(paths)
    return document


def _head(tag: str, method: str, path: str, endpoint: Callable[..., Any]) -> dict[str, Any]:
    return {
        "tags": [tag],
        "summary": (endpoint.__doc__ or path).strip().splitlines()[0],
        "operationId": _NO_WORD.sub("_", f"{method}_{_plain(path)}".lower()).strip("_"),
    }


def _plain(path: str) -> str:
    return _CONVERTOR.sub(r"{\1}", path)


def _answer_schemas(answers: Sequence[Any], schemas: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """The schema of each type of answer; what they refer to goes into ``schemas``, under names that no body has."""
    kinds = list(dict.fromkeys(kind for answer in answers for kind in _kinds(answer)))
    found, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE.format(model="answers.{name}"))
    schemas.update({f"answers.{name}": schema for name, schema in components.items()})
    schema_of: dict[Any, dict[str, Any]] = dict(zip(kinds, found, strict=True))
    return {
        answer: schema_of[answer] if len(_kinds(answer)) == 1 else {"anyOf": [schema_of[kind] for kind in answer]}
        for answer in answers
    }


def _kinds(answer: Any) -> tuple[Any, ...]:
    return tuple(cast("Sequence[Any]", answer)) if isinstance(answer, tuple) else (answer,)


def _responses(
    media_types: Sequence[str], answer: Mapping[str, Any] | None, statuses: Sequence[int] = (200,)
) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {} for kind in media_types}
    for kind in media_types:
        if kind == "application/json" and answer is not None:
            content[kind] = {"schema": answer}
        elif not kind.startswith(_TEXTS):
            content[kind] = {"schema": {"type": "string", "format": "binary"}}
    answers = {str(status): {"description": "The answer", "content": content} for status in statuses if content}
    return {**answers, **_ERRORS}


def _link(paths: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Says where to go on with an object that was made: to every route below its collection that is about one."""
    for path, methods in paths.items():
        below = [(other, match[1]) for other in paths if (match := re.match(re.escape(path) + r"/\{(\w+)\}", other))]
        for method, place in (("post", "/id"), ("get", "/data/0/id")):
            answer = methods.get(method, {}).get("responses", {}).get("200", {})
            if not below or "application/json" not in answer.get("content", ()):
                continue
            answer["links"] = {
                operation["operationId"]: {
                    "operationId": operation["operationId"],
                    "parameters": {name: f"$response.body#{place}"},
                }
                for other, name in below
                for operation in paths[other].values()
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
