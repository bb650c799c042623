"""The files of video jobs: what a client sent and what was made of it. Disk work is done in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from sixfold.core.files import FileStore
from sixfold.plugins.video.messages import VideoFile
from sixfold.plugins.video.record import VideoFiles, VideoRecord


class VideoAssets:
    """Stores and finds files by their ids. Used in the serving loop.

    Args:
        files: Without an expiry of its own: the jobs say when a file goes.
    """

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def store(self, result: VideoFile, video: bytes) -> VideoFiles:
        """Stores what a job made, all of it or nothing.

        Raises:
            NotReady: There is no room.
            RuntimeError: The video did not arrive whole.
        """
        if len(video) != result.num_bytes:
            raise RuntimeError(f"{len(video)} of {result.num_bytes} bytes of the file arrived")
        return await asyncio.to_thread(self._store, result, video)

    def _store(self, result: VideoFile, video: bytes) -> VideoFiles:
        made: list[str] = []
        try:
            for data, suffix in ((video, result.suffix), (result.thumbnail, ".webp"), (result.spritesheet, ".jpg")):
                made.append(self._files.put(data, suffix))
        except BaseException:
            for file_id in made:
                self._files.delete(file_id)
            raise
        return VideoFiles(video=made[0], thumbnail=made[1], spritesheet=made[2], media_type=result.media_type)

    async def store_reference(self, record: VideoRecord) -> VideoRecord:
        """The record with its request's reference image in a file instead.

        Raises:
            NotReady: There is no room.
        """
        data = record.request.reference
        if data is None:
            return record
        file_id = await asyncio.to_thread(self._files.put, data)
        request = msgspec.structs.replace(record.request, reference=None)
        return msgspec.structs.replace(record, request=request, reference=file_id)

    async def read(self, file_id: str | None) -> bytes | None:
        """The bytes of a file, if there is one."""
        path = None if file_id is None else await asyncio.to_thread(self._files.path, file_id)
        return None if path is None else await asyncio.to_thread(path.read_bytes)

    async def delete(self, file_ids: Iterable[str]) -> None:
        """Removes files; those that are gone already are no mistake."""
        for file_id in file_ids:
            await asyncio.to_thread(self._files.delete, file_id)
