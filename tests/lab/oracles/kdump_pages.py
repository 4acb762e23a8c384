"""Reads kdump-compressed files, sharing no code with dumpstream, so that it shares no mistake.

block 0              disk_dump_header
block 1 ..           kdump_sub_header (sub_hdr_size blocks)
then                 1st bitmap: page exists; 2nd: page is dumped (bitmap_blocks for both)
then                 page_desc[] of 24 bytes, one for each bit of the 2nd bitmap
then                 page data, in any order
"""

from __future__ import annotations

import mmap
import struct
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from tests.lab.oracles.codecs import PAGE_SIZE, decode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]
    PfnArray = NDArray[np.int64]

SIGNATURE = b"KDUMP   "
PAGE_DESC = np.dtype([("off", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
# from status, the first field behind the timeval
_HEADER = struct.Struct("<IiiIIIII")
_HEADER_OFF = 424
_VERSION_OFF = 8
_SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")


class Header(NamedTuple):
    """The fields of disk_dump_header that say where things are."""

    status: int
    block_size: int
    sub_hdr_size: int  # in blocks
    bitmap_blocks: int
    max_mapnr: int  # 0 or cut to 32 bits where max_mapnr_64 counts
    total_ram_blocks: int
    device_blocks: int
    written_blocks: int


class SubHeader(NamedTuple):
    """kdump_sub_header of version 6."""

    phys_base: int
    dump_level: int
    split: int
    start_pfn: int
    end_pfn: int
    offset_vmcoreinfo: int
    size_vmcoreinfo: int
    offset_note: int
    size_note: int
    offset_eraseinfo: int
    size_eraseinfo: int
    start_pfn_64: int
    end_pfn_64: int
    max_mapnr_64: int


class KdumpPages:
    """An opened kdump-compressed file; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Maps the file and reads its headers.

        Raises:
            ValueError: not a little-endian 64-bit file of version 6 with blocks of 4 to 64 KiB.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        version = int.from_bytes(self._map[_VERSION_OFF : _VERSION_OFF + 4], "little")
        if self._map[: len(SIGNATURE)] != SIGNATURE or version != 6:
            raise ValueError(f"{path}: not a kdump-compressed file of version 6")
        self.header = Header._make(_HEADER.unpack_from(self._map, _HEADER_OFF))
        self.page_size = self.header.block_size
        if self.page_size not in (PAGE_SIZE, 4 * PAGE_SIZE, 16 * PAGE_SIZE):
            raise ValueError(f"{path}: blocks of {self.header.block_size} bytes")
        self.sub_header = SubHeader._make(_SUB_HEADER.unpack_from(self._map, self.page_size))

    def __enter__(self) -> Self:
        """The opened file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmaps the file as soon as no array needs it."""
        self.close()

    def close(self) -> None:
        """Unmaps the file; arrays that were handed out are copies."""
        self._map.close()

    @property
    def max_mapnr(self) -> int:
        """One more than the highest pfn of both bitmaps."""
        return self.sub_header.max_mapnr_64

    @property
    def vmcoreinfo(self) -> bytes:
        """The VMCOREINFO text, without its note header."""
        start = self.sub_header.offset_vmcoreinfo
        return self._map[start : start + self.sub_header.size_vmcoreinfo]

    def _bitmap(self, number: int) -> BoolArray:
        n_bytes = self.header.bitmap_blocks * self.page_size // 2
        start = (1 + self.header.sub_hdr_size) * self.page_size + number * n_bytes
        packed = np.frombuffer(self._map[start : start + n_bytes], np.uint8)
        bits = np.unpackbits(packed, bitorder="little")
        if bits[self.max_mapnr :].any():
            raise ValueError(f"bitmap {number + 1} has pages past max_mapnr {self.max_mapnr:#x}")
        return bits[: self.max_mapnr].astype(np.bool_)

    @cached_property
    def exists(self) -> BoolArray:
        """bool[max_mapnr] of the 1st bitmap: the page is memory of the dumped machine."""
        return self._bitmap(0)

    @cached_property
    def dumped(self) -> BoolArray:
        """bool[max_mapnr] of the 2nd bitmap: the page is in the dump."""
        return self._bitmap(1)

    @cached_property
    def pfns(self) -> PfnArray:
        """int64[n_dumped]: the pages in the dump, ascending."""
        return np.flatnonzero(self.dumped)

    @cached_property
    def descriptors(self) -> NDArray[Any]:
        """PAGE_DESC[n_dumped], in the order of `pfns`."""
        header = self.header
        start = (1 + header.sub_hdr_size + header.bitmap_blocks) * self.page_size
        data = self._map[start : start + len(self.pfns) * PAGE_DESC.itemsize]
        return np.frombuffer(data, PAGE_DESC)

    def stored(self, off: int, size: int) -> bytes:
        """The bytes of a page as they are stored."""
        return self._map[off : off + size]

    def page_at(self, index: int) -> bytes:
        """Contents of the page `pfns[index]`.

        Raises:
            ValueError: the stored data is damaged.
        """
        off, size, flags, _ = self.descriptors[index].tolist()
        return decode(flags, self.stored(off, size), self.page_size)

    def read_page(self, pfn: int) -> bytes | None:
        """A page's contents, None where the dump does not have it."""
        index = int(np.searchsorted(self.pfns, pfn))
        if index == len(self.pfns) or self.pfns[index] != pfn:
            return None
        return self.page_at(index)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """All pages as (pfn, contents), by ascending pfn."""
        for index, pfn in enumerate(self.pfns.tolist()):
            yield pfn, self.page_at(index)
