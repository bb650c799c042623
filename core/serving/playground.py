"""The playground at ``/``: a page of plain modules, with a tab from each plugin that brings one."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sixfold.core.errors import NotFound, UsageError
from sixfold.core.serving.api import ModalityAPI

PREFIX = "/playground/"
"""Below it are the page's files, which hold no secrets and need no key."""

_FOLDER = Path(__file__).parent / "playground"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing but what this server sends: no inline script or style, no other host, no frame around it. Pictures, clips and
# sounds that the page itself has made are blobs and data.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-cache",  # asked for each time, answered by 304 while nothing has changed
}
_OFF = "The playground is off here: the operator can turn it on by server.playground."
_PLAIN = b"sixfold is running; see /docs\n"


class PageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the page must know of this server: its tabs, and whether ``GET /decisions`` would answer."""

    panels: tuple[PanelEntry, ...]
    tells_decisions: bool


class PanelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A tab as the page learns of it; shown while some model of the modality offers the operation."""

    id: str
    title: str
    modality: str
    operation: str
    order: int
    script: str


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent.

    Attributes:
        content: Its bytes.
        packed: The same by gzip.
        media_type: By its ending.
        etag: Of its content, quoted.
    """

    content: bytes
    packed: bytes
    media_type: str
    etag: str


class Playground:
    """The page's routes. Files are read once, when the server is made.

    Args:
        apis: The modalities whose panels are shown.
        enabled: `ServerSettings.playground`.

    Raises:
        UsageError: A panel's file is not there.
    """

    def __init__(self, apis: Iterable[ModalityAPI], *, enabled: bool) -> None:
        self._files: dict[str, PageFile] = {}
        self._panels: tuple[PanelEntry, ...] = ()
        if not enabled:
            return
        self._files |= _read_folder(_FOLDER, "")
        entries: list[PanelEntry] = []
        for api in apis:
            for panel in api.panels():
                self._files |= _read_folder(panel.script.parent, f"{api.modality}/")
                name = f"{api.modality}/{panel.script.name}"
                if name not in self._files:
                    raise UsageError(f"The panel {panel.title!r} of {api.modality!r} has no file {panel.script}.")
                entries.append(
                    PanelEntry(
                        id=panel.title.lower(),
                        title=panel.title,
                        modality=api.modality,
                        operation=panel.operation,
                        order=panel.order,
                        script=PREFIX.lstrip("/") + name,
                    )
                )
        self._panels = tuple(sorted(entries, key=lambda entry: entry.order))

    @property
    def files(self) -> Mapping[str, PageFile]:
        """All files by their path below the prefix; none if the page is off."""
        return self._files

    async def index(self, request: Request) -> Response:
        """``GET /``: the page for browsers, a line for everybody else."""
        page = self._files.get("index.html")
        if page is None or "text/html" not in request.headers.get("accept", ""):
            return Response(_PLAIN, media_type="text/plain", headers={"vary": "accept"})
        return _answer(request, page, vary="accept, accept-encoding")

    async def facts(self, request: Request) -> Response:
        """``GET /playground/page.json``: the tabs.

        Raises:
            NotFound: The page is off.
        """
        if not self._files:
            raise NotFound(_OFF)
        tells_decisions = any(getattr(route, "path", None) == "/decisions" for route in request.app.routes)
        body = msgspec.json.encode(PageFacts(panels=self._panels, tells_decisions=tells_decisions))
        return Response(body, media_type="application/json", headers={"cache-control": "no-cache"})

    async def file(self, request: Request) -> Response:
        """``GET /playground/...``: one of the page's files.

        Raises:
            NotFound: There is no such file, or the page is off.
        """
        found = self._files.get(request.path_params["path"])
        if found is None:
            raise NotFound("The playground has no such file." if self._files else _OFF)
        return _answer(request, found, vary="accept-encoding")


def _answer(request: Request, file: PageFile, *, vary: str) -> Response:
    headers = {**_HEADERS, "etag": file.etag, "vary": vary}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = file.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content = file.packed
        headers["content-encoding"] = "gzip"
    return Response(content, headers=headers, media_type=file.media_type)


def _read_folder(folder: Path, prefix: str) -> dict[str, PageFile]:
    """The files of a folder that the page may ask for, by their path."""
    return {
        prefix + path.name: _page_file(path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(folder.glob("*"))
        if path.suffix in _MEDIA_TYPES and path.is_file()
    }


def _page_file(content: bytes, media_type: str) -> PageFile:
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:24]}"'  # weak: packed and plain are one file
    return PageFile(content, gzip.compress(content, 9, mtime=0), media_type, etag)
