"""Positioned access to the bytes of an image: one protocol, and plain files behind it.

Everything here is safe from several threads and in forked children: no call depends on the file
position that they share.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, Protocol

from pipeline.errors import DumpError
from stages.reader.pieces import MAX_OFF

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe; save it to a file first, images are read at random"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
)


class ImageFile(Protocol):
    """Bytes of a dump as its format numbers them, whatever they are stored in."""

    path: str
    size: int | None
    """Bytes, None where the system does not tell: read until nothing comes."""
    incomplete: str | None
    """Why the container is known to be cut, None when it looks whole."""
    has_holes: bool
    """`holes` may find some."""

    def read(self, off: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `off`, fewer at the end only; ranges nobody wrote are zero.

        Raises:
            OSError: the device failed.
        """

    def read_into(self, view: memoryview, off: int) -> int:
        """Fill the start of `view` (flat bytes); returns how many came, 0 at the end.

        Raises:
            OSError: the device failed, or the range is missing from a cut container.
        """

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Byte ranges inside [start, stop) known to be zero without reading, ascending."""

    def advise(self, start: int, stop: int) -> None:
        """Hint that bytes [start, stop) will be read soon."""

    def close(self) -> None:
        """Release the file; calling it twice is fine."""


class PlainFile:
    """A regular file, a block device, or a file of /proc."""

    incomplete: str | None = None

    def __init__(self, path: str) -> None:
        """Open `path` for reading.

        Raises:
            DumpError: it can't be opened, is empty, or is no file that can be read at random.
        """
        self.path = path
        self._fd = -1
        try:
            # A fifo without a writer would block here for ever.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise DumpError(f"{path}: {reason}") from error
        try:
            self._check_kind(status.st_mode)
            self.size = _measure(self._fd)
            if self.size == 0:
                raise DumpError(f"not a memory image: {path} is empty")
        except DumpError:
            self.close()
            raise
        self.has_holes = (
            stat.S_ISREG(status.st_mode)
            and self.size is not None
            and status.st_blocks * 512 < self.size
        )
        self._advises = self._probes = True

    def _check_kind(self, mode: int) -> None:
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise DumpError(f"not a memory image: {self.path} is {kind}")

    def read(self, off: int, n_bytes: int) -> bytes:
        pieces: list[bytes] = []
        # pread allocates what it is asked for, and takes no offset of more than 63 bits.
        n_bytes = min(n_bytes, (MAX_OFF if self.size is None else self.size) - off)
        while n_bytes > 0 and (piece := os.pread(self._fd, n_bytes, off)):
            pieces.append(piece)
            off += len(piece)
            n_bytes -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, view: memoryview, off: int) -> int:
        return os.preadv(self._fd, (view,), off)

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if self.size is not None:
            stop = min(stop, self.size)
        while start < stop:
            try:
                data = os.lseek(self._fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: no data up to the end of the file
                    return
                data = stop
            if data > start:
                yield start, min(data, stop)
            if data >= stop:
                return
            try:
                start = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError:
                return

    def advise(self, start: int, stop: int) -> None:
        if not self._advises or self._is_cached(start, stop):
            return
        try:
            os.posix_fadvise(self._fd, start, stop - start, os.POSIX_FADV_WILLNEED)
        except OSError:  # files of /proc have no page cache to fill
            self._advises = False

    def _is_cached(self, start: int, stop: int) -> bool:
        """Whether bytes [start, stop) look as if they were in memory: first, middle and last are.

        The kernel takes 50 ns a page to find out that it has nothing to read, which is a twentieth
        of a whole dump of an image in the page cache; three bytes are read in 3 us.
        """
        if not self._probes:
            return False
        byte = bytearray(1)
        try:
            return all(
                os.preadv(self._fd, (byte,), off, os.RWF_NOWAIT)
                for off in (start, (start + stop) // 2, stop - 1)
            )
        except BlockingIOError:
            return False
        except OSError:  # EOPNOTSUPP, for most: the file system can't tell
            self._probes = False
            return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _measure(fd: int) -> int | None:
    """Size of an open file if the file itself bears it out, else None.

    st_size is 0 for block devices and for some files of /proc, and the whole address space for
    /proc/kcore. So the end is believed only where reading stops there.
    """
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
        if end == 0:
            return None if os.pread(fd, 1, 0) else 0
        stops_there = len(os.pread(fd, 1, end - 1)) == 1 and not os.pread(fd, 1, end)
    except (OSError, OverflowError):
        return None
    return end if stops_there else None
