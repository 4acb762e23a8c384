"""Recorded requests to a page cache: what `dumpstream trace` writes and replays.

A trace is a file of little-endian 64-bit words: a magic, the page size, then for each request one
word (number of pages, and bit 63 for page tables) and the pfns. It holds addresses, no content.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np

from pipeline.errors import FormatError, TruncatedError
from pipeline.memory.addresses import PfnArray

MAGIC: Final = 0x3145_4341_5254_5344  # "DSTRACE1" in the file
_TABLES: Final = 1 << 63
_MAX_PAGES: Final = 1 << 24
_WORD: Final = 8
_MIN_PAGE: Final = 1 << 9
_MAX_PAGE: Final = 1 << 16


class TracedRequest(NamedTuple):
    """Pfns asked for together, and whether they are page tables."""

    pfns: PfnArray
    preferred: bool


class TraceWriter:
    """Appends requests to a file that somebody else opened, and closes."""

    def __init__(self, file: BinaryIO, page_size: int) -> None:
        self._file = file
        self.n_requests = 0
        file.write(np.array([MAGIC, page_size], dtype="<u8").tobytes())

    def add(self, pfns: PfnArray, *, preferred: bool) -> None:
        head = np.array([len(pfns) | (_TABLES if preferred else 0)], dtype="<u8")
        self._file.write(head.tobytes() + pfns.astype("<u8").tobytes())
        self.n_requests += 1


class TraceReader:
    """A trace in a file; iterating reads it request by request."""

    def __init__(self, path: str) -> None:
        """Read the head.

        Raises:
            FormatError: no trace.
            OSError: not readable.
        """
        self.path = path
        self._words = np.fromfile(Path(path), dtype="<u8")
        if len(self._words) < 2 or int(self._words[0]) != MAGIC:  # magic and size
            seen = hex(int(self._words[0])) if len(self._words) else "nothing"
            raise FormatError("trace", 0, "magic", seen, hex(MAGIC))
        self.page_size = int(self._words[1])
        if not _MIN_PAGE <= self.page_size <= _MAX_PAGE or self.page_size & (self.page_size - 1):
            wanted = f"a power of two from {_MIN_PAGE} to {_MAX_PAGE}"
            raise FormatError("trace", _WORD, "page size", self.page_size, wanted)

    def __iter__(self) -> Iterator[TracedRequest]:
        """Requests in their order.

        Raises:
            FormatError: a request that cannot be.
            TruncatedError: the file ends inside one.
        """
        at = 2
        while at < len(self._words):
            head = int(self._words[at])
            n_pages = head & ~_TABLES
            if n_pages > _MAX_PAGES:
                raise FormatError("trace", at * _WORD, "pages", n_pages, f"{_MAX_PAGES} at most")
            at += 1
            if at + n_pages > len(self._words):
                size = len(self._words) * _WORD
                raise TruncatedError("trace", at * _WORD, "pfns", n_pages * _WORD, size)
            yield TracedRequest(self._words[at : at + n_pages].astype(np.uint64), head >= _TABLES)
            at += n_pages
