"""What a plugin needs to give its modality an HTTP face: a LitAPI with routes, one `Call` per HTTP request, one `SocketCall`
per WebSocket, and `Services` for what outlives both. Import all of it from here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import litserve as ls
from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core.serving.api_calls import Call as Call
from sixfold.core.serving.api_calls import Caller as Caller
from sixfold.core.serving.api_calls import Fetched as Fetched
from sixfold.core.serving.api_calls import Running as Running
from sixfold.core.serving.api_calls import ServedModel as ServedModel
from sixfold.core.serving.api_calls import SocketCall as SocketCall
from sixfold.core.serving.api_services import BackgroundRun as BackgroundRun
from sixfold.core.serving.api_services import Services as Services
from sixfold.core.serving.upload import StoredUpload as StoredUpload
from sixfold.core.serving.upload import Upload as Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP route of a modality.

    Attributes:
        path: Starlette path, e.g. ``"/v1/embeddings"``.
        endpoint: Called once per request.
        method: HTTP method.
        body: The pydantic model of a JSON body, for the OpenAPI document; as the next three.
        form: Of a form's fields.
        query_params: Of the query string.
        media_types: Of the answer.
        in_batches: Whether a line of ``/v1/batches`` may ask for it: one whole answer, and asking twice does no harm.
    """

    path: str
    endpoint: Callable[[Call], Awaitable[Response]]
    method: str = "POST"
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    query_params: type[BaseModel] | None = None
    media_types: tuple[str, ...] = ("application/json",)
    in_batches: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketRoute:
    """One WebSocket route of a modality.

    Attributes:
        path: Starlette path, e.g. ``"/v1/realtime"``.
        endpoint: Called once per socket; its end is the socket's.
        query_params: The pydantic model of the query string, for the OpenAPI document.
    """

    path: str
    endpoint: Callable[[SocketCall], Awaitable[None]]
    query_params: type[BaseModel] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A tab of the playground.

    Attributes:
        title: One word, unlike that of any other tab.
        operation: The tab is there while a model of the modality offers it.
        script: An ES module in a folder of the plugin's package. Its ``mount(root, context)`` fills the element ``root``;
            ``context`` has ``api`` (calls of this server), ``models`` (as in ``/v1/models``) and ``announce(text)``. It may
            return ``{show, hide, update(models)}``. It may import what lies beside it, and the page's own modules from ``../``.
        order: Tabs stand from the lowest to the highest.
    """

    title: str
    operation: str
    script: Path
    order: int = 100


class ModalityAPI(ls.LitAPI):  # type: ignore[misc]  # litserve ships no types
    """Base of the one LitAPI that each modality has; a subclass lists its routes.

    The serving process makes one instance, without arguments. Nothing here may import a model library.
    """

    modality: str = ""

    def routes(self) -> Sequence[Route | SocketRoute]:
        """The modality's routes. Called once, before the server listens."""
        raise NotImplementedError

    def panels(self) -> Sequence[Panel]:
        """The modality's tabs of the playground. Called once, when the server is made."""
        return ()

    async def startup(self, services: Services) -> None:
        """Called once in the serving loop before the server answers; models are still loading then.

        An exception keeps the server from starting. Tasks made here belong to the modality: end them in `shutdown`.
        """

    async def shutdown(self) -> None:
        """Called once in the serving loop after the last request was answered; gets a few seconds."""
