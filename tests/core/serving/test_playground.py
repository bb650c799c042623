"""The page at ``/``: who gets it, with which headers, and how plugins bring tabs."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.responses import Response

from sixfold.core.errors import PluginConflict, UsageError
from sixfold.core.serving.api import Call, Panel, Route
from sixfold.core.serving.playground import Playground
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.core.serving.fake_replica import EchoAPI, FakeModel
from tests.core.serving.server_thread import ServerThread

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MAX_PAGE_BYTES = 120_000


class TabbedAPI(EchoAPI):
    """Brings a tab."""

    script = Path()

    def panels(self) -> Sequence[Panel]:
        return (Panel(title="Echo", operation="echo", script=self.script, order=5),)


@pytest.fixture
def tabbed(tmp_path: Path) -> TabbedAPI:
    (tmp_path / "echo.js").write_text("export function mount() {}\n")
    (tmp_path / "notes.txt").write_text("not for the page")
    api = TabbedAPI()
    api.script = tmp_path / "echo.js"
    return api


def test_browsers_get_the_page_and_programs_a_line(served: ServerThread) -> None:
    page = served.ask("GET", "/", headers=HTML)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>Sixfold</title>" in page.body
    line = served.ask("GET", "/")
    assert line.body == b"sixfold is running; see /docs\n"
    assert "accept" in page.headers["vary"]
    assert "accept" in line.headers["vary"]


def test_the_page_may_load_from_its_own_server_only_and_holds_no_inline_code(served: ServerThread) -> None:
    page = served.ask("GET", "/", headers=HTML)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    text = page.body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|https?://", text)


def test_links_of_the_page_are_relative_so_that_it_works_below_any_path(served: ServerThread) -> None:
    text = served.ask("GET", "/", headers=HTML).body.decode()
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert links
    assert [link for link in links if link.startswith("/")] == []
    for link in links:
        assert served.ask("GET", f"/{link}").status == 200, link


def test_files_are_revalidated_by_etag_and_packed_for_whoever_takes_it(served: ServerThread) -> None:
    plain = served.ask("GET", "/playground/main.js")
    assert (plain.status, plain.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    packed = served.ask("GET", "/playground/main.js", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    again = served.ask("GET", "/playground/main.js", headers={"if-none-match": plain.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    other = served.ask("GET", "/playground/api.js", headers={"if-none-match": plain.headers["etag"]})
    assert other.status == 200


def test_only_files_of_the_page_can_be_asked_for(served: ServerThread) -> None:
    for path in ("nothing.js", "../settings.py", "%2e%2e/settings.py", "", "playground"):
        answer = served.ask("GET", f"/playground/{path}")
        assert (answer.status, answer.error["code"]) == (404, "not_found"), path


def test_the_page_needs_no_key_and_what_it_calls_does() -> None:
    settings = ServerSettings(api_keys=(ApiKeySettings(name="ward", sha256=hash_key("k")),))
    with ServerThread(FakeModel("parrot"), settings=settings) as served:
        assert served.ask("GET", "/", headers=HTML).status == 200
        assert served.ask("GET", "/playground/page.json").status == 200
        assert served.ask("GET", "/v1/models").status == 401


def test_an_operator_can_turn_the_page_off() -> None:
    with ServerThread(FakeModel("parrot"), settings=ServerSettings(playground=False)) as served:
        assert served.ask("GET", "/", headers=HTML).headers["content-type"].startswith("text/plain")
        assert served.ask("GET", "/playground/main.js").status == 404
        assert served.ask("GET", "/playground/page.json").status == 404


def test_a_plugin_brings_a_tab_with_the_files_beside_it(tabbed: TabbedAPI) -> None:
    with ServerThread(FakeModel("parrot"), apis=[tabbed]) as served:
        facts = served.ask("GET", "/playground/page.json").json
        (entry,) = facts["panels"]
        assert facts["tells_decisions"] is True
        assert entry == {
            "id": "echo",
            "title": "Echo",
            "modality": "echo",
            "operation": "echo",
            "order": 5,
            "script": "playground/echo/echo.js",
        }
        assert served.ask("GET", f"/{entry['script']}").body == b"export function mount() {}\n"
        assert served.ask("GET", "/playground/echo/notes.txt").status == 404


def test_a_tab_whose_file_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    api = TabbedAPI()
    api.script = tmp_path / "gone.js"
    with pytest.raises(UsageError, match="'Echo' of 'echo' has no file"):
        Playground([api], enabled=True)


def test_no_plugin_may_put_a_route_where_no_key_is_asked_for() -> None:
    class Sneaky(EchoAPI):
        def routes(self) -> Sequence[Route]:
            return (Route(path="/playground/secrets", endpoint=self.secrets),)

        async def secrets(self, call: Call) -> Response:
            raise AssertionError

    with pytest.raises(PluginConflict, match="need no key"):
        ServerThread(FakeModel("parrot"), apis=[Sneaky()])


def test_the_whole_page_with_all_tabs_is_small() -> None:
    from sixfold.core.cli.server import load_apis
    from sixfold.core.plugins import load_plugins

    files = Playground(load_apis(load_plugins()), enabled=True).files
    assert {path.partition("/")[0] for path in files if "/" in path} >= {
        "llm",
        "embedding",
        "asr",
        "tts",
        "image",
        "video",
    }
    assert sum(len(file.content) for file in files.values()) < MAX_PAGE_BYTES
