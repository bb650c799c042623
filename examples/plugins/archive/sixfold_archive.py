"""A new source of models: ``archive:URL#sha256=DIGEST`` fetches a tar archive, checks it, and unpacks it once."""

import gzip
import lzma
import re
import tarfile
import tempfile
import zlib
from pathlib import Path

from sixfold.core import Plugin, Progress, RemoteFile, SourceError, fetch_file, file_lock

REFERENCE = re.compile(r"(?P<url>(https?|file)://[^#\s]+)#sha256=(?P<sha256>[0-9a-f]{64})")
BROKEN = (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


class ArchiveSource:
    """See `sixfold.core.Source`."""

    scheme = "archive"

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        """The folder of the unpacked files; the same for every archive with this checksum, wherever it came from."""
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise SourceError(f"'archive:{reference}' is malformed. Write archive:https://HOST/FILE.tar.gz#sha256=HEX.")
        folder = cache_dir / "archive" / match["sha256"]
        label = match["url"].rpartition("/")[2]
        with file_lock(folder.with_suffix(".lock"), label, progress):
            if not folder.exists():
                packed = folder.with_suffix(".tar")
                fetch_file(RemoteFile(url=match["url"], sha256=match["sha256"], label=label), packed, progress)
                unpack(packed, folder, label)
        return folder


def unpack(packed: Path, folder: Path, label: str) -> None:
    """Makes the folder in one move, so that half an archive is never taken for a model."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        files = Path(draft, "files")
        files.mkdir()
        try:
            with tarfile.open(packed) as archive:
                archive.extractall(files, filter="data")  # refuses what leads outside
            if not any(files.iterdir()):
                raise tarfile.ReadError("it is empty")
        except BROKEN as error:
            packed.unlink()
            raise SourceError(
                f"{label} can't be unpacked: {error}. Make it with: tar czf FILE.tar.gz -C FOLDER ."
            ) from error
        files.rename(folder)
    packed.unlink()


PLUGIN = Plugin(sources=[ArchiveSource()])
