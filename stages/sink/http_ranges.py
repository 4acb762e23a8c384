"""A dump on a web server that writes parts of files: a `PartStore`, so that each part is tried
again by itself, several are under way, and an upload can be resumed.

The parts go into ``NAME.partial`` where the server can rename, else into ``NAME`` itself: the first
bytes, without which it is no dump, come last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from pipeline.errors import SinkError
from stages.sink.http_files import HttpFiles
from stages.sink.http_url import PARTIAL
from stages.sink.manifest import SUFFIX
from stages.sink.part_store import Seal, SentPart, UploadGoneError
from stages.sink.parts import Part, PartLimits
from stages.sink.read_back import Extent, check_read_back
from stages.sink.retry import TransientError

_READ_BYTES: Final = 4 << 20
_SIGNATURE: Final = 8
"""Bytes that say what a file is, in every form of dump."""
_KIB: Final = 1 << 10
_GIB: Final = 1 << 30
LIMITS: Final = PartLimits(least_bytes=256 * _KIB, most_bytes=64 * _GIB, most_parts=10_000)
"""Files have no parts; manifests list 10,000 pieces."""


class HttpRangeStore:
    """PartStore for one file of a server whose ranges are `Ranges.IN_PLACE`.

    With `verify` all, each part is read back while it can still be sent again.
    """

    limits = LIMITS

    def __init__(self, files: HttpFiles, *, moves: bool, verify: Extent) -> None:
        self._files = files
        self._suffix = PARTIAL if moves else ""
        self._verify: Extent = verify
        self._overwrite = False
        self._put_a_manifest = False
        self.target = files.target.show()

    async def open(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite

    async def begin(self) -> str:
        await self._files.put(self._suffix)
        return f"name{self._suffix}"

    async def resume(self, upload_id: str) -> Mapping[int, str] | None:
        self._suffix = upload_id.removeprefix("name")
        if not await self._files.exists(self._suffix):
            raise UploadGoneError(f"{self._files.target.show(self._suffix)}: is gone")
        return None

    def seal(self, data: memoryview) -> Seal:
        return Seal(hashlib.sha256(data).digest(), "")

    async def put_part(self, part: Part, data: memoryview, seal: Seal) -> str:
        if part.offset:
            await self._put(part.offset, data)
            return seal.sha256.hex()[:16]
        await self._put(_SIGNATURE, data[_SIGNATURE:])
        return bytes(data[:_SIGNATURE]).hex()  # kept with the part, also for another process

    async def _put(self, offset: int, data: memoryview) -> None:
        """Write, and see that it was written, as long as it can be written again."""
        await self._files.put_range(self._suffix, offset, data)
        if self._verify != "all":
            return
        for at in range(0, len(data), _READ_BYTES):
            wanted = bytes(data[at : at + _READ_BYTES])
            if await self._files.read(self._suffix, offset + at, len(wanted)) != wanted:
                where = self._files.target.show(self._suffix)
                raise TransientError(
                    f"{where}: the {len(wanted)} bytes at offset {offset + at:#x} read back "
                    "differently from what was sent"
                )

    def marks(self, _parts: Sequence[SentPart]) -> Mapping[str, str]:
        return {}

    async def put_manifest(self, data: bytes) -> None:
        self._put_a_manifest = True
        await self._files.put(SUFFIX, data)

    async def complete(self, parts: Sequence[SentPart]) -> None:
        size = sum(sent.part.n_bytes for sent in parts)
        seen = await self._files.size(self._suffix)
        if seen is None and self._suffix and await self._files.size("") == size:
            return  # a try whose answer was lost
        where = self._files.target.show(self._suffix)
        if seen != size:
            raise SinkError(f"{where}: has {seen} bytes where {size} were sent")

        async def read(offset: int, n_bytes: int) -> bytes:
            return await self._files.read(self._suffix, offset, n_bytes)

        await self._files.put_range(self._suffix, 0, bytes.fromhex(parts[0].tag))
        extent: Extent = "samples" if self._verify == "all" else self._verify
        await check_read_back(where, [sent.piece for sent in parts], read, extent)
        if self._suffix:
            await self._files.move(self._suffix, "", overwrite=self._overwrite)

    async def confirm(self, parts: Sequence[SentPart]) -> None:
        size = sum(sent.part.n_bytes for sent in parts)
        seen = await self._files.size("")
        if seen != size:
            raise SinkError(f"{self.target}: has {seen} bytes where {size} were sent")

    async def abort(self) -> None:
        await self._files.delete(self._suffix)
        if self._put_a_manifest:
            with suppress(SinkError):
                await self._files.delete(SUFFIX)

    async def close(self) -> None:
        await self._files.close()
