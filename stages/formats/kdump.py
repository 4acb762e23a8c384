"""The kdump-compressed dump format, header versions 1 to 6, of 64-bit little-endian machines.

References:
    makedumpfile's IMPLEMENTATION, "The kdump-compressed format"

Blocks are pages of the dumped machine; every offset in the file is absolute::

    0              main header
    block 1        sub header, notes (v4), [eraseinfo (v5)]          sub_hdr_size blocks
    bitmap1_start  a bit for every page frame: it existed            bitmap_blocks blocks,
    bitmap2_start  a bit for every page frame: it was dumped           both bitmaps together
    descriptors    24 bytes for each page dumped, ascending pfn
    data_start     the pages' bytes, in any order, unaligned

Bit p & 7 of byte p >> 3 is page frame p. A page's descriptor is number rank(p), the count of
dumped pages below p.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntFlag
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from pipeline.errors import FormatError
from stages.formats.elf import Buffer, ByteOrder

SIGNATURE: Final = b"KDUMP   "
DISKDUMP_SIGNATURE: Final = b"DISKDUMP"
UTSNAME_BYTES: Final = 390
UTSNAME_FIELD: Final = 65
"""Each of the six strings: sysname, nodename, release, version, machine, domainname."""
OLDEST_VERSION: Final = 1
"""Version 0 has no dump_level, and makedumpfile refuses it too."""
NEWEST_VERSION: Final = 6
MAX_MAPNR: Final = 1 << 38
"""Page frames; 1 PiB in small pages. Each bitmap then has 32 GiB, most of it empty."""
_MAX_U32: Final = (1 << 32) - 1

PAGE_DESC: Final = np.dtype(
    [("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")]
)
"""One page's descriptor. offset 0: the page was lost when the dump was cut short."""


class PageFlag(IntFlag):
    """`flags` of a descriptor: how the page is compressed, 0 for raw."""

    RAW = 0
    ZLIB = 0x1
    LZO = 0x2
    SNAPPY = 0x4
    ZSTD = 0x20


class Status(IntFlag):
    """`status` of the main header: the compression asked for (a `PageFlag`), and what happened."""

    INCOMPLETE = 0x8
    """Some pages or descriptors are missing: the target was full, or the writer died."""
    EXCLUDED_VMEMMAP = 0x10
    """vmemmap pages that describe only excluded pages were left out."""


class MainHeader(NamedTuple):
    """struct disk_dump_header of a 64-bit machine, in block 0."""

    signature: bytes
    header_version: int
    utsname: bytes
    tv_sec: int  # of the crash, seconds since the epoch
    tv_usec: int
    status: int
    block_size: int  # bytes
    sub_hdr_size: int  # blocks
    bitmap_blocks: int  # blocks, both bitmaps
    max_mapnr: int  # capped at 2**32 - 1; since header v6 max_mapnr_64 tells
    total_ram_blocks: int = 0  # makedumpfile writes 0 here and below
    device_blocks: int = 0
    written_blocks: int = 0
    current_cpu: int = 0
    nr_cpus: int = 0  # NT_PRSTATUS notes

    @classmethod
    def parse(cls, buf: Buffer) -> MainHeader:
        return cls._make(_MAIN.unpack_from(buf))

    def pack(self) -> bytes:
        return _MAIN.pack(*self)


_MAIN: Final = struct.Struct("<8si390s6xqqIiiIIIIIIi")
MAIN_HEADER_SIZE: Final = _MAIN.size


class SubHeader(NamedTuple):
    """struct kdump_sub_header of a 64-bit machine, at the start of block 1."""

    phys_base: int = 0  # signed: KASLR may put the kernel below its link address
    dump_level: int = 0  # since header v1
    split: int = 0  # since header v2: 1 in one part of several
    start_pfn: int = 0  # since header v2: pages of this part, end exclusive
    end_pfn: int = 0
    offset_vmcoreinfo: int = 0  # since header v3: byte in the file, of the text itself
    size_vmcoreinfo: int = 0
    offset_note: int = 0  # since header v4: the source's PT_NOTE, verbatim
    size_note: int = 0
    offset_eraseinfo: int = 0  # since header v5
    size_eraseinfo: int = 0
    start_pfn_64: int = 0  # since header v6: the 32-bit architectures' fields above are too short
    end_pfn_64: int = 0
    max_mapnr_64: int = 0

    @classmethod
    def parse(cls, buf: Buffer, version: int) -> SubHeader:
        """Fields that header `version` does not have are 0, whatever bytes stand there."""
        n_known = _SUB_BYTES[min(version, NEWEST_VERSION)]
        known = bytes(buf[:n_known]).ljust(_SUB.size, b"\0")
        return cls._make(_SUB.unpack(known))

    def pack(self) -> bytes:
        return _SUB.pack(*self)


_SUB: Final = struct.Struct("<qiiQQqQqQqQQQQ")
SUB_HEADER_SIZE: Final = _SUB.size
_SUB_BYTES: Final = (8, 12, 32, 48, 64, 80, 104)
"""Bytes of the sub header that header version 0, 1, ... knows."""


def check_main_header(header: MainHeader, file_size: int | None) -> None:
    """Refuse sizes that no dump has, before anything is read or allocated by them.

    Args:
        header: as parsed, nothing about it checked but its signature.
        file_size: bytes, None when unknown.

    Raises:
        FormatError: with the field that is out of bounds.
    """
    size = header.block_size
    if not 4096 <= size <= 65536 or size & (size - 1):
        raise FormatError("kdump", 428, "block_size", size, "a power of two, 4096 to 65536")
    limit = _MAX_U32 if file_size is None else file_size // size
    if not 1 <= header.sub_hdr_size <= limit:
        raise FormatError("kdump", 432, "sub_hdr_size", header.sub_hdr_size, f"1 to {limit} blocks")
    if header.bitmap_blocks < 1:
        raise FormatError("kdump", 436, "bitmap_blocks", header.bitmap_blocks, "1 block or more")


def bitmap_span(header: MainHeader, max_mapnr: int) -> tuple[int, bool]:
    """Bytes of one bitmap, and whether there are two (old full dumps have one for both uses).

    Raises:
        FormatError: not even one bitmap of `max_mapnr` bits fits in bitmap_blocks.
    """
    size = header.block_size
    needed = -(-max_mapnr // (8 * size))
    if header.bitmap_blocks >= 2 * needed:
        return header.bitmap_blocks // 2 * size, True
    if header.bitmap_blocks >= needed:
        return header.bitmap_blocks * size, False
    wanted = f"{needed} blocks or more for max_mapnr {max_mapnr:#x}"
    raise FormatError("kdump", 436, "bitmap_blocks", header.bitmap_blocks, wanted)


class Variant(Struct, frozen=True):
    """Word size and byte order of the machine a dump is from."""

    bits: int
    order: ByteOrder


def _variants() -> Iterator[tuple[Variant, int]]:
    # Where block_size stands: utsname and padding, two words of time, then status.
    yield Variant(64, "<"), 428
    yield Variant(64, ">"), 428
    yield Variant(32, "<"), 416
    yield Variant(32, ">"), 416


def identify(head: Buffer) -> Variant | None:
    """Form of the dump that starts with `head`; None when no reading of its sizes makes sense.

    The header does not say; the only reading in which the block size is a page size and the
    bitmaps are large enough is the right one.
    """
    for variant, off in _variants():
        if len(head) < off + 16:
            continue
        fields = struct.unpack_from(f"{variant.order}iiII", head, off)
        block_size, _sub_blocks, bitmap_blocks, max_mapnr = fields
        sane = 4096 <= block_size <= 65536 and block_size & (block_size - 1) == 0
        # Version 6 has the whole max_mapnr elsewhere, this one is cut to 32 bits.
        if sane and bitmap_blocks > 0 and 8 * bitmap_blocks * block_size >= max_mapnr:
            return variant
    return None


def utsname_strings(utsname: bytes) -> tuple[str, ...]:
    """The six strings: sysname, nodename, release, version, machine, domainname."""
    starts = range(0, UTSNAME_BYTES, UTSNAME_FIELD)
    fields = (utsname[start : start + UTSNAME_FIELD] for start in starts)
    return tuple(field.split(b"\0", 1)[0].decode("ascii", "replace") for field in fields)


class KdumpLayout(Struct, frozen=True):
    """Where everything of a dump lies, as soon as pass 1 has counted the pages.

    Attributes:
        block_size: page size of the dumped machine, bytes.
        max_mapnr: bits in each bitmap.
        notes_size: bytes of the notes, carried verbatim behind the sub header.
        n_dumped: bits set in the second bitmap, hence descriptors.
        eraseinfo_size: bytes of text behind the notes.
    """

    block_size: int
    max_mapnr: int
    notes_size: int
    n_dumped: int
    eraseinfo_size: int = 0

    @property
    def sub_header_start(self) -> int:
        return self.block_size

    @property
    def notes_start(self) -> int:
        return self.block_size + SUB_HEADER_SIZE

    @property
    def eraseinfo_start(self) -> int:
        return self.notes_start + self.notes_size

    @property
    def sub_hdr_size(self) -> int:
        """Blocks."""
        n_bytes = SUB_HEADER_SIZE + self.notes_size + self.eraseinfo_size
        return -(-n_bytes // self.block_size)

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of one bitmap, whole blocks."""
        return -(-self.max_mapnr // (8 * self.block_size)) * self.block_size

    @property
    def bitmap_blocks(self) -> int:
        """Blocks of both bitmaps."""
        return 2 * self.bitmap_bytes // self.block_size

    @property
    def bitmap1_start(self) -> int:
        return (1 + self.sub_hdr_size) * self.block_size

    @property
    def bitmap2_start(self) -> int:
        return self.bitmap1_start + self.bitmap_bytes

    @property
    def descriptors_start(self) -> int:
        return self.bitmap2_start + self.bitmap_bytes

    @property
    def data_start(self) -> int:
        return self.descriptors_start + PAGE_DESC.itemsize * self.n_dumped


class KdumpHead(Struct, frozen=True):
    """What a dump says about itself; always written as header version 6.

    Attributes:
        utsname: 390 bytes, zeros where unknown.
        timestamp: seconds since the epoch, 0 where unknown.
        status: the `PageFlag` that was asked for, with `Status` bits.
        vmcoreinfo: (offset inside `notes`, size) of the VMCOREINFO text.
    """

    utsname: bytes
    timestamp: int
    status: int
    block_size: int
    max_mapnr: int
    nr_cpus: int
    phys_base: int
    dump_level: int
    notes: bytes
    vmcoreinfo: tuple[int, int] | None = None
    eraseinfo: bytes = b""

    def marked_incomplete(self) -> KdumpHead:
        return replace(self, status=self.status | Status.INCOMPLETE)

    def pack(self, layout: KdumpLayout) -> bytes:
        """Block 0 up to the first bitmap."""
        pieces = (
            (0, self._main(layout).pack()),
            (layout.sub_header_start, self._sub(layout).pack()),
            (layout.notes_start, self.notes),
            (layout.eraseinfo_start, self.eraseinfo),
        )
        if (layout.block_size, layout.max_mapnr) != (self.block_size, self.max_mapnr):
            raise ValueError("block_size or max_mapnr is not the layout's")
        out = bytearray(layout.bitmap1_start)
        for start, data in pieces:
            out[start : start + len(data)] = data
        if len(out) != layout.bitmap1_start:
            raise ValueError("notes or eraseinfo are larger than the layout has room for")
        return bytes(out)

    def _main(self, layout: KdumpLayout) -> MainHeader:
        return MainHeader(
            signature=SIGNATURE,
            header_version=NEWEST_VERSION,
            utsname=self.utsname,
            tv_sec=self.timestamp,
            tv_usec=0,
            status=self.status,
            block_size=self.block_size,
            sub_hdr_size=layout.sub_hdr_size,
            bitmap_blocks=layout.bitmap_blocks,
            max_mapnr=min(self.max_mapnr, _MAX_U32),
            nr_cpus=self.nr_cpus,
        )

    def _sub(self, layout: KdumpLayout) -> SubHeader:
        offset, size = self.vmcoreinfo or (0, 0)
        # Readers find an absent part by its size of 0, and expect offset 0 beside it.
        return SubHeader(
            # Some sources give it as an unsigned word.
            phys_base=(self.phys_base + (1 << 63)) % (1 << 64) - (1 << 63),
            dump_level=self.dump_level,
            offset_vmcoreinfo=layout.notes_start + offset if size else 0,
            size_vmcoreinfo=size,
            offset_note=layout.notes_start if self.notes else 0,
            size_note=len(self.notes),
            offset_eraseinfo=layout.eraseinfo_start if self.eraseinfo else 0,
            size_eraseinfo=len(self.eraseinfo),
            max_mapnr_64=self.max_mapnr,
        )
