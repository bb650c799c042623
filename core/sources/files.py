"""``file:path``: models that are on this machine already."""

from __future__ import annotations

from pathlib import Path

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress


class FileSource:
    """Resolves a path to itself. The configuration has made relative paths absolute; ``~`` is the user's home."""

    scheme = "file"

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        """See `sixfold.core.hookspecs.Source`. Nothing is fetched or kept."""
        if not reference.strip():
            raise SourceError("'file:' names no file. Write file:PATH, a folder with config.json or a file.")
        path = Path(reference).expanduser().absolute()
        if path.is_dir() and not any(path.iterdir()):
            raise SourceError(f"The folder {path} is empty. Put the model's files there.")
        if not path.exists():
            raise SourceError(f"No model at {path}. Set 'source: file:...' to a folder with config.json or to a file.")
        return path
