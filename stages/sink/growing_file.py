"""What a file system can be told about a file that grows to some size nobody knows yet.

Two hints, both of which may fail without harm, and neither of which changes a byte:

* Blocks for what comes next are allocated in large steps (`RoomAhead`). Without that ext4 does its
  accounting for each block that is written: 350 MB take 67 ms to write, with it 43 ms.
* What has been written starts on its way to the disk at once (`EarlyFlush`), while the next pages
  are compressed, instead of all of it in the fsync at the end: 2 ms of fsync instead of 80.
"""

from __future__ import annotations

import ctypes
from typing import Final

import anyio.to_thread

from pipeline.flow.wakeup import Wakeup

_MIB: Final = 1 << 20
STEP_BYTES: Final = 64 * _MIB
FLUSH_BYTES: Final = 16 * _MIB
_KEEP_SIZE: Final = 1
"""FALLOC_FL_KEEP_SIZE: the file does not get longer."""
_START_WRITING: Final = 2
"""SYNC_FILE_RANGE_WRITE: start, and wait for nothing."""
_EXT4: Final = 0xEF53
"""f_type of statfs(2). Measured for this one; tmpfs, for one, would clear the memory first."""
_STATFS_WORDS: Final = 32


def _c_library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    size = ctypes.c_int64
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, size, size]
    library.sync_file_range.argtypes = [ctypes.c_int, size, size, ctypes.c_uint]
    return library


class RoomAhead:
    """Blocks behind the end of an open file; what is not used goes back by truncating it."""

    def __init__(self, fd: int, *, most_bytes: int) -> None:
        """`most_bytes` is the size that the file can't exceed."""
        self._fd = fd
        self._most = most_bytes
        self._end = 0
        self._library = _c_library()
        self._can = self._is_ext4()
        self.is_used = False
        """The file may have blocks behind its end, also from an attempt that failed half-way."""

    def _is_ext4(self) -> bool:
        words = (ctypes.c_long * _STATFS_WORDS)()
        done: int = self._library.fstatfs(self._fd, words)
        return done == 0 and words[0] == _EXT4

    def ends_before(self, end: int) -> bool:
        """Whether `extend` would do something."""
        return self._can and end > self._end

    def extend(self, end: int) -> None:
        """Have room up to `end` and a step beyond; when the disk has none, never ask again."""
        self.is_used = True
        stop = max(end, min(end + STEP_BYTES, self._most))
        if self._library.fallocate(self._fd, _KEEP_SIZE, self._end, stop - self._end) == 0:
            self._end = stop
        else:
            self._can = False


class EarlyFlush:
    """Starts writing back a file's growing end, each few MiB of it, beside whoever writes it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._done: int | None = None
        self._end = 0
        self._grown = Wakeup()
        self._library = _c_library()

    def wrote(self, start: int, end: int) -> None:
        """[start, end) has been written, and everything since the first `start`."""
        if self._done is None:
            self._done = start
        self._end = end
        if end - self._done >= FLUSH_BYTES:
            self._grown.wake()

    async def run(self) -> None:
        """Until cancelled. A device that is slow gets less often, but larger, pieces to write."""
        while True:
            while self._done is None or self._end - self._done < FLUSH_BYTES:
                await self._grown.wait()
            start, self._done = self._done, self._end
            await anyio.to_thread.run_sync(self._start_writing, start, self._end)

    def _start_writing(self, start: int, end: int) -> None:
        # Not supported, or the device failed: the fsync at the end says so.
        self._library.sync_file_range(self._fd, start, end - start, _START_WRITING)
