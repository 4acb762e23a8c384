"""/proc/vmcore: reading it maps and unmaps every page, so the reader maps many of them at once.

References:
    Linux fs/proc/vmcore.c (read_from_oldmem, mmap_vmcore), since 3.11

A read(2) costs the kernel a mapping of its own, a copy and a flush of the TLB for each page; pages
that are mapped into the process are copied by it, at the speed of memory.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

from stages.reader.file_io import PlainFile

LEAST_BYTES: Final = 64 << 10
"""Below this the two system calls of a mapping cost more than the kernel's own way."""


class VmcoreFile(PlainFile):
    """A file of /proc; one that can't be mapped is read as any other."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._maps = self.size is not None

    def read_into(self, view: memoryview, off: int) -> int:
        if self._maps and len(view) >= LEAST_BYTES:
            n_bytes = self._copy_mapped(view, off)
            if n_bytes:
                return n_bytes
        return super().read_into(view, off)

    def _copy_mapped(self, view: memoryview, off: int) -> int:
        """Fill `view` from a mapping as far as the file reaches; 0 when there is none."""
        n_bytes = min(len(view), (self.size or 0) - off)
        if n_bytes < LEAST_BYTES:
            return 0
        start = off // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        skip = off - start
        try:
            mapping = mmap.mmap(
                self._fd, skip + n_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start
            )
        except (OSError, ValueError):  # /proc/kcore, or what lies there can't be mapped
            self._maps = False
            return 0
        with mapping, memoryview(mapping) as bytes_there:
            view[:n_bytes] = bytes_there[skip : skip + n_bytes]
        return n_bytes


def open_local(path: str) -> PlainFile:
    """The file at `path`, by the way of reading that suits it.

    Raises:
        DumpError: see `PlainFile`.
    """
    return VmcoreFile(path) if _is_in_proc(path) else PlainFile(path)


def _is_in_proc(path: str) -> bool:
    try:
        return Path(path).stat().st_dev == Path("/proc").stat().st_dev
    except (OSError, ValueError):
        return False
