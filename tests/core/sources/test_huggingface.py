"""The real huggingface_hub against a small hub on this machine: what is fetched, what is kept, what goes wrong."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.sources.huggingface import HubReference, HuggingFaceSource, wanted_files

pytest.importorskip("huggingface_hub")

COMMIT = "c" * 40


class Reports(Protocol):
    calls: list[tuple[str, int, int | None]]

    def __call__(self, what: str, done_bytes: int, total_bytes: int | None) -> None: ...


class Hub:
    """The part of the hub's HTTP API that a download needs, for one repository.

    Attributes:
        files: Content by name.
        revisions: Commits by branch or tag.
        status: Answered with this error code (the hub's header) instead, if set.
        fetched: Names of the files whose content was sent.
        num_calls: Requests of any kind.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.revisions = {"main": COMMIT, "v1": "d" * 40}
        self.status: tuple[int, str] | None = None
        self.fetched: list[str] = []
        self.num_calls = 0
        self.url = ""

    def api(self, path: str) -> object | None:
        """The JSON answer of an API path of ``org/repo``."""
        kind, _, revision = path.removeprefix("/api/models/org/repo").lstrip("/").partition("/")
        commit = self.revisions.get(revision or "main", revision)
        if commit not in self.revisions.values():
            return None
        if kind == "tree":
            return [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
        siblings = [{"rfilename": name} for name in self.files]
        return {"id": "org/repo", "sha": commit, "siblings": siblings, "tags": [], "private": False, "downloads": 0}


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            hub.num_calls += 1
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            if hub.status is not None:
                self._send(hub.status[0], b"{}", {"X-Error-Code": hub.status[1]}, with_body)
            elif path.startswith("/api/models/org/repo"):
                answer = hub.api(path)
                missing = {"X-Error-Code": "RevisionNotFound"}
                body = json.dumps(answer or {}).encode()
                self._send(404 if answer is None else 200, body, missing if answer is None else {}, with_body)
            elif path.startswith("/org/repo/resolve/"):
                commit, _, name = path.removeprefix("/org/repo/resolve/").partition("/")
                content = hub.files[name]
                if with_body:
                    hub.fetched.append(name)
                headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
                self._send(200, content, headers, with_body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub, None, None]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    state = Hub()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def source(hub: Hub, folder: Path) -> HuggingFaceSource:
    return HuggingFaceSource(endpoint=hub.url, hub_cache=folder / "hub")


def test_a_repository_is_fetched_without_weights_of_other_formats(hub: Hub, tmp_path: Path, reports: Reports) -> None:
    hub.files = {
        "config.json": b"{}",
        "model.safetensors": b"s" * 3000,
        "pytorch_model.bin": b"b" * 3000,
        "onnx/model.onnx": b"o",
        "model-q4.gguf": b"g",
        "tf_model.h5": b"h",
    }
    folder = source(hub, tmp_path).resolve("org/repo", cache_dir=tmp_path / "cache", progress=reports)
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]
    assert reports.calls[-1] == ("org/repo", 3002, 3002)


def test_a_pinned_commit_that_was_fetched_needs_no_network(hub: Hub, tmp_path: Path, quiet: Progress) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"s"}
    reference = f"org/repo@{COMMIT}"
    first = source(hub, tmp_path).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    hub.num_calls = 0
    assert source(hub, tmp_path).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet) == first
    assert hub.num_calls == 0


def test_a_branch_is_served_from_the_cache_while_the_hub_is_away(hub: Hub, tmp_path: Path, quiet: Progress) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"s", "pytorch_model.bin": b"b"}
    first = source(hub, tmp_path).resolve("org/repo", cache_dir=tmp_path / "cache", progress=quiet)
    hub.status = (503, "")
    assert source(hub, tmp_path).resolve("org/repo", cache_dir=tmp_path / "cache", progress=quiet) == first


def test_a_revision_is_honoured(hub: Hub, tmp_path: Path, quiet: Progress) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"s"}
    folder = source(hub, tmp_path).resolve("org/repo@v1", cache_dir=tmp_path / "cache", progress=quiet)
    assert folder.name == "d" * 40
    with pytest.raises(SourceError, match="has no revision 'v2'"):
        source(hub, tmp_path).resolve("org/repo@v2", cache_dir=tmp_path / "cache", progress=quiet)


def test_one_file_of_a_repository_can_be_the_model(hub: Hub, tmp_path: Path, quiet: Progress) -> None:
    hub.files = {"a-q4.gguf": b"4", "a-q8.gguf": b"8"}
    here = source(hub, tmp_path)
    with pytest.raises(SourceError, match=r"no safetensors .* hf:org/repo#path=a-q4\.gguf"):
        here.resolve("org/repo", cache_dir=tmp_path / "cache", progress=quiet)
    path = here.resolve("org/repo#path=a-q8.gguf", cache_dir=tmp_path / "cache", progress=quiet)
    assert path.read_bytes() == b"8"
    assert hub.fetched == ["a-q8.gguf"]
    with pytest.raises(SourceError, match="has no file a-q2"):
        here.resolve("org/repo#path=a-q2.gguf", cache_dir=tmp_path / "cache", progress=quiet)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (404, "RepoNotFound", "Check the name; for a private one set HF_TOKEN"),
        (401, "RepoNotFound", "Check the name; for a private one set HF_TOKEN"),
        (403, "GatedRepo", "Accept its terms"),
        (503, "", "Run `sixfold pull` with network access first"),
        (400, "", "the download failed"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(
    hub: Hub, tmp_path: Path, quiet: Progress, status: int, code: str, advice: str
) -> None:
    hub.status = (status, code)
    with pytest.raises(SourceError) as caught:
        source(hub, tmp_path).resolve("org/repo", cache_dir=tmp_path / "cache", progress=quiet)
    assert str(caught.value).startswith("hf:org/repo: ")
    assert advice in str(caught.value)


def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path: Path, quiet: Progress) -> None:
    nowhere = HuggingFaceSource(endpoint="http://127.0.0.1:1", hub_cache=tmp_path / "hub")
    with pytest.raises(SourceError, match="cannot be reached"):
        nowhere.resolve("org/repo", cache_dir=tmp_path / "cache", progress=quiet)


@pytest.mark.parametrize("text", ["", "org/", "/repo", "a/b/c", "org/repo@", "org/repo#file=x", "org/repo#path=../x"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(SourceError):
        HubReference.parse(text)


@given(
    repo=st.from_regex(r"[a-z0-9]{1,5}(/[A-Za-z0-9._-]{1,5})?", fullmatch=True),
    revision=st.none() | st.from_regex(r"[a-z0-9/._-]{1,8}", fullmatch=True),
    path=st.none() | st.from_regex(r"[a-z]{1,4}(/[A-Za-z0-9 &#%]{1,4}\.gguf)?", fullmatch=True),
)
def test_a_written_reference_is_read_back(repo: str, revision: str | None, path: str | None) -> None:
    reference = HubReference.parse(
        str(HubReference(repo=repo, revision=revision, path=None if path is None else PurePosixPath(path)))
    )
    assert (reference.repo, reference.revision) == (repo, revision)
    assert (str(reference.path) if reference.path else None) == path


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        # the same weights in three formats
        (["model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "vocab.txt"], ["model.safetensors", "vocab.txt"]),
        # old repositories have pickled weights only
        (["pytorch_model.bin", "config.json"], ["pytorch_model.bin", "config.json"]),
        # each folder for itself: the second module was never converted
        (["model.safetensors", "2_Dense/pytorch_model.bin"], ["model.safetensors", "2_Dense/pytorch_model.bin"]),
        # the trainer's own file beside the sharded one, and alone
        (["consolidated.safetensors", "model-1.safetensors"], ["model-1.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        # other runtimes
        (["openvino/model.bin", "original/x.pth", "model.safetensors", "a.onnx"], ["model.safetensors"]),
    ],
)  # fmt: skip
def test_weights_are_taken_once(names: list[str], wanted: list[str]) -> None:
    assert list(wanted_files(names)) == wanted
