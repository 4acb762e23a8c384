"""Writing through aiofiles; selectable, and measured against `os.pwrite` in docs/adr/0005.

aiofiles has no positioned write: each chunk is a seek and a write, two thread hops.
"""

from __future__ import annotations

import os
from typing import Any

import aiofiles
import anyio


class AiofilesWriter:
    """A `PositionedWriter` on one aiofiles handle."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def write(self, fd: int, data: memoryview, offset: int) -> None:
        # Cancelled, aiofiles leaves a thread that writes on, from a buffer in other hands by then.
        with anyio.CancelScope(shield=True):
            if self._handle is None:
                self._handle = await aiofiles.open(os.dup(fd), "r+b", buffering=0)
            await self._handle.seek(offset)
            while data:
                done = await self._handle.write(data)
                data = data[done:]

    async def close(self) -> None:
        if self._handle is not None:
            await self._handle.close()
            self._handle = None
