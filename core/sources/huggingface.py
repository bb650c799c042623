"""``hf:repo[@revision]``: models of a Hugging Face hub, in the cache that all its tools share."""

from __future__ import annotations

import glob
import importlib
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.sources.reference import inner_path, join_fragment, split_fragment

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
_OTHER_RUNTIMES = {".onnx", ".gguf", ".h5", ".msgpack", ".ot", ".tflite", ".mlmodel", ".mlpackage", ".engine"}
_OTHER_FOLDERS = {"onnx", "openvino", "coreml", "original", "runs", ".git"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubReference:
    """``repo[@revision][#path=file]``.

    Attributes:
        repo: ``org/name``.
        revision: A branch, tag or commit; None is the repository's default branch.
        path: One file of the repository that alone is the model, e.g. one of several ``.gguf``.
    """

    repo: str
    revision: str | None = None
    path: PurePosixPath | None = None

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Reads a reference.

        Raises:
            SourceError: It is malformed.
        """
        name, fields = split_fragment(text, ("path",))
        repo, at, revision = name.partition("@")
        if not _REPO.fullmatch(repo) or (at and not revision):
            raise SourceError(f"'hf:{text}' is malformed. Write hf:org/repo, hf:org/repo@revision or ...#path=file.")
        path = inner_path(fields["path"], text) if "path" in fields else None
        return cls(repo=repo, revision=revision or None, path=path)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        name = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return join_fragment(name, {"path": str(self.path)} if self.path else {})


class _Listing(msgspec.Struct, frozen=True):
    """What a repository's revision was found to be, so that the next start needs no network."""

    commit: str
    files: tuple[str, ...]


def wanted_files(names: Iterable[str]) -> tuple[str, ...]:
    """Of a repository's files, those that serving needs: each folder's weights in one format, safetensors first.

    Formats of other runtimes are left out; pickled weights are taken where their folder has no safetensors.
    """
    paths = [PurePosixPath(name) for name in names]
    safe_folders = {path.parent for path in paths if path.suffix == ".safetensors"}
    # A repository may hold the same weights once more under the trainer's own names.
    named = {p.parent for p in paths if p.suffix == ".safetensors" and not p.name.startswith("consolidated")}
    wanted: list[str] = []
    for path in paths:
        duplicate = path.suffix in _PICKLED and path.parent in safe_folders
        consolidated = path.name.startswith("consolidated") and path.parent in named
        foreign = path.suffix in _OTHER_RUNTIMES or bool(_OTHER_FOLDERS.intersection(path.parts[:-1]))
        if not (duplicate or consolidated or foreign):
            wanted.append(str(path))
    return tuple(wanted)


class HuggingFaceSource:
    """Downloads by ``huggingface_hub``, which honours HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME.

    Args:
        endpoint: The hub's address; huggingface_hub's own configuration unless given.
        hub_cache: The hub's cache folder; the shared one unless given.
    """

    scheme = "hf"

    def __init__(self, endpoint: str | None = None, hub_cache: Path | None = None) -> None:
        self._endpoint = endpoint
        self._hub_cache = hub_cache

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        """See `sixfold.core.hookspecs.Source`. A commit, or anything while the hub is out of reach, comes from the cache."""
        hub = _hub()
        wanted = HubReference.parse(reference)
        record = cache_dir / "hf" / f"{re.sub(r'[^A-Za-z0-9._-]', '--', str(wanted))}.json"
        listing = _read_record(record)
        with _explained(wanted, hub):
            online = None
            if listing is None or wanted.revision is None or not _COMMIT.fullmatch(wanted.revision):
                progress(f"{wanted.repo} (listing files)", 0, None)
                online = self._look_up(wanted, hub)
            listing = online or listing
            folder = hub.snapshot_download(
                wanted.repo,
                revision=listing.commit if listing else wanted.revision,
                allow_patterns=[glob.escape(name) for name in listing.files] if listing else None,
                local_files_only=online is None and listing is None,
                endpoint=self._endpoint,
                cache_dir=self._hub_cache,
                tqdm_class=_bar_class(wanted.repo, progress),
            )
        if online is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            draft = record.with_suffix(f".{os.getpid()}.tmp")
            draft.write_bytes(msgspec.json.encode(online))
            os.replace(draft, record)
        path = Path(folder) / wanted.path if wanted.path else Path(folder)
        if not path.exists():
            raise SourceError(f"hf:{wanted}: the repository has no file {wanted.path}. Look at its file list.")
        return path

    def _look_up(self, wanted: HubReference, hub: Any) -> _Listing | None:
        """Asks the hub for the revision's commit and files; None when the hub cannot be reached.

        Raises:
            HfHubHTTPError: The hub answered, and the answer is no.
        """
        try:
            info = hub.HfApi(endpoint=self._endpoint).model_info(wanted.repo, revision=wanted.revision, timeout=10.0)
        except hub.errors.HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            return None
        except (OSError, hub.errors.HTTPError):  # no network, or HF_HUB_OFFLINE
            return None
        names = [sibling.rfilename for sibling in info.siblings or ()]
        files = (str(wanted.path),) if wanted.path else wanted_files(names)
        if not wanted.path and not any(name.endswith((".safetensors", *_PICKLED)) for name in files):
            others = [name for name in names if PurePosixPath(name).suffix in _OTHER_RUNTIMES]
            hint = f" Name one of its files: hf:{wanted.repo}#path={others[0]}" if others else ""
            raise SourceError(f"hf:{wanted}: the repository has no safetensors or PyTorch weights.{hint}")
        return _Listing(commit=info.sha or "main", files=files)


def _hub() -> Any:
    # Imported by name: the extra that brings it may be absent, for the checkers as for the user.
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise SourceError("'hf:' sources need huggingface_hub. Run: pip install huggingface_hub") from error


def _read_record(path: Path) -> _Listing | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Listing)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


@contextmanager
def _explained(wanted: HubReference, hub: Any) -> Generator[None, None, None]:
    """Turns the hub's exceptions into SourceErrors that say what to do."""
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as error:
        what = "the repository is gated. Accept its terms on its page, then set HF_TOKEN to a token of that account"
        raise SourceError(f"hf:{wanted}: {what}.") from error
    except errors.RepositoryNotFoundError as error:
        what = "no such repository, or it is private. Check the name; for a private one set HF_TOKEN"
        raise SourceError(f"hf:{wanted}: {what}.") from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"hf:{wanted}: the repository has no revision {wanted.revision!r}. Check it.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        what = (
            "the hub cannot be reached (or HF_HUB_OFFLINE is set) and the files are not all in the local cache. "
            "Run `sixfold pull` with network access first"
        )
        raise SourceError(f"hf:{wanted}: {what}.") from error
    except (OSError, errors.HTTPError) as error:
        raise SourceError(
            f"hf:{wanted}: the download failed: {error}. Try again: it goes on where it stopped."
        ) from error


def _bar_class(label: str, progress: Progress) -> type:
    """A progress bar class for huggingface_hub that draws nothing and reports bytes to ``progress``.

    Several download threads share one bar. The hub keeps a second bar for what crosses the network; it would count
    the same bytes again.
    """
    tqdm: Any = importlib.import_module("tqdm.auto").tqdm

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.counts_bytes = kwargs.get("unit") == "B" and kwargs.get("desc") != "Downloading bytes"
        self.done_bytes = int(kwargs.get("initial") or 0)
        kwargs.pop("name", None)
        tqdm.__init__(self, *args, **{**kwargs, "disable": True})

    def update(self: Any, n: float | None = 1) -> None:
        self.done_bytes += int(n or 0)
        if self.counts_bytes:
            progress(label, self.done_bytes, int(self.total) if self.total else None)

    return type("ReportingBar", (tqdm,), {"__init__": init, "update": update})
