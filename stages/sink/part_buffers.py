"""The part buffers of an upload: as many as agreed, used again and again."""

from __future__ import annotations

import mmap

import anyio


class PartBuffers:
    """Hands out buffers of zeros, `n_buffers` at a time at most.

    Giving one back frees its memory at once, whatever still refers to it: requests and answers of
    an HTTP library refer to each other, and the garbage collector comes when it likes.
    """

    def __init__(self, n_buffers: int) -> None:
        self._may_take = anyio.Semaphore(n_buffers)
        self._free: dict[int, list[mmap.mmap]] = {}

    async def take(self, n_bytes: int) -> mmap.mmap:
        """A buffer of that size, all zeros; waits until one may be had."""
        await self._may_take.acquire()
        free = self._free.get(n_bytes)
        if free:
            return free.pop()
        return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give_back(self, buffer: mmap.mmap) -> None:
        """Nobody may use `buffer` any more."""
        buffer.madvise(mmap.MADV_DONTNEED)  # zeros again, and no memory until it is written to
        self._free.setdefault(len(buffer), []).append(buffer)
        self._may_take.release()
