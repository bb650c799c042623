"""reference/endpoints.md: every route of server, gateway, hub and agent."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from docs.generate.first_party import MODALITIES, apis
from docs.generate.markdown import NOTE, cell, prose, summary, table
from sixfold.core.plugins import load_plugins
from sixfold.core.serving.api import ModalityAPI, SocketRoute
from sixfold.core.serving.gate import ALWAYS_OPEN, FIGURES
from sixfold.core.serving.server import SixfoldServer
from sixfold.scaling.agent.service import agent_routes
from sixfold.scaling.gateway.own_routes import OwnRoutes
from sixfold.scaling.hub.service import hub_routes
from sixfold.scaling.hub.web import Routes

HEAD = ("Method", "Path", "What it does")
OWN = "server"
"""Where routes stand that belong to no modality."""

_OWN_NAME = re.compile(r"^`[A-Z]+ [^`]*`( and `[^`]*`)?[:;.] ?")

_NOBODY: Any = SimpleNamespace()


def page() -> str:
    """The whole page."""
    parts = [NOTE, "# Endpoints\n", _INTRODUCTION]
    found = list(server_routes())
    for modality in (*MODALITIES, *sorted({where for where, *_ in found} - {*MODALITIES, OWN}), OWN):
        title = "The server itself" if modality == OWN else f"Modality {modality}"
        rows = [(f"`{method}`", f"`{path}`", text) for where, method, path, text in found if where == modality]
        parts += [f"## {title}\n", table(HEAD, rows)]
    gateway = [("`GET`", f"`{path}`", text) for path, text in gateway_routes()]
    parts += ["## Gateway\n", _GATEWAY, table(HEAD, gateway)]
    for title, routes in (("Hub", hub_routes(_NOBODY)), ("Agent", agent_routes(_NOBODY, _NOBODY))):
        rows = [(f"`{method}`", f"`{path}`", text) for method, path, text in fixed_routes(routes)]
        parts += [f"## {title}\n", "With the `token` of its configuration, where there is one.\n", table(HEAD, rows)]
    return "\n".join(parts)


def server_routes() -> Iterator[tuple[str, str, str, str]]:
    """Modality, method, path and meaning of every route of a server with all first-party plugins."""
    faces: list[ModalityAPI] = []
    for api in apis(load_plugins()):
        module, _, name = api.factory.partition(":")
        faces.append(getattr(importlib.import_module(module), name)())
    nobody: Any = SimpleNamespace(models=tuple, find=lambda _name: None, ready=True, draining=False)
    server = SixfoldServer(faces, nobody)
    for modality, route in server._modality_routes:
        method = "WS" if isinstance(route, SocketRoute) else route.method
        text = _said(inspect.getdoc(route.endpoint) or "", f"{route.path} of {modality}")
        if not isinstance(route, SocketRoute):
            forms = " JSON or a form." if route.body and route.form else " A form." if route.form else ""
            text += forms + (" Also in batches." if route.in_batches else "")
        yield modality, method, route.path, text
    for path, operations in server.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if operation.get("tags"):
                continue
            text = _said(operation.get("description") or "", path)
            needs = (
                "" if path in ALWAYS_OPEN else " Needs a key with `protect_metrics` only." if path in FIGURES else ""
            )
            yield OWN, method.upper(), path, text + needs
    for path, text in (("/docs", "The OpenAPI document for people."), ("/openapi.json", "The OpenAPI document.")):
        yield OWN, "GET", path, text


def _said(docstring: str, where: str) -> str:
    """What a route's docstring says beside its own name.

    Raises:
        ValueError: Nothing.
    """
    text = _OWN_NAME.sub("", cell(prose(docstring.partition("\n\n")[0])))
    if not text:
        raise ValueError(f"{where} has no words in its docstring. Say what it does.")
    return text[0].upper() + text[1:]


def gateway_routes() -> Iterator[tuple[str, str]]:
    """Path and meaning of what a gateway answers itself."""
    own = OwnRoutes(_NOBODY, _NOBODY, _NOBODY, _NOBODY, _NOBODY, _NOBODY, _NOBODY)
    for path, answer in own.routes():
        yield path, cell(summary(answer))


def fixed_routes(routes: Routes) -> Iterator[tuple[str, str, str]]:
    """Method, path and meaning of what hub or agent answers."""
    for (method, path), answer in sorted(routes.items()):
        yield method, path, cell(summary(answer))
    yield "GET", "/metrics", "Prometheus text; see [metrics](metrics.md)."


_INTRODUCTION = """\
Every route, by who answers it. Fields of bodies, and what of them is honoured, are in the page of the modality;
`/openapi.json` of a running server has schemas of all bodies. Every route but `/`, `/health`, `/ready`, `/docs` and
`/openapi.json` (and `/metrics` and `/load` without `protect_metrics`) needs a bearer key where `server.api_keys` are
set. "Also in batches": a line of `/v1/batches` may ask for it.

Headers of every request: `x-request-id` comes back and stands in the logs; `x-request-timeout-s` is a deadline;
`x-priority` (`batch`, `standard`, `interactive`) lowers the request's class.
"""

_GATEWAY = "All other requests are passed on to a server ([how](../gateway.md)).\n"
