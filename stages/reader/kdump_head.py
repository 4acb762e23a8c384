"""Read what a kdump-compressed dump says about itself: headers, notes, bitmaps."""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct

from pipeline.errors import FormatError, TruncatedError, UnsupportedError
from pipeline.memory.bitmap import BLOCK_BYTES, BLOCK_PAGES, PageBitmap
from stages.formats.elf import Buffer
from stages.formats.kdump import (
    MAIN_HEADER_SIZE,
    MAX_MAPNR,
    NEWEST_VERSION,
    OLDEST_VERSION,
    SUB_HEADER_SIZE,
    MainHeader,
    Status,
    SubHeader,
    bitmap_span,
    check_main_header,
    identify,
    utsname_strings,
)
from stages.formats.notes import NoteFacts, summarize_notes
from stages.reader.elf_head import MAX_NOTE_BYTES
from stages.reader.file_io import ImageFile
from stages.reader.image import ImageInfo

MAX_ERASEINFO_BYTES: Final = 16 << 20
_MAX_LEVEL: Final = 31
_READ_BLOCKS: Final = 64
"""Bitmap blocks read at a time: 256 KiB."""


class KdumpHeader(Struct, frozen=True):
    """Both headers, checked, and what follows from them.

    Attributes:
        max_mapnr: bits in each bitmap, from wherever this version keeps it.
        start_pfn, end_pfn: pages this file has descriptors for; all but for a split part.
        bitmap1_start: byte in the file, as are those below.
        bitmap2_start: the same as `bitmap1_start` in an old full dump.
    """

    main: MainHeader
    sub: SubHeader
    max_mapnr: int
    start_pfn: int
    end_pfn: int
    bitmap1_start: int
    bitmap2_start: int
    descriptors_start: int

    @property
    def incomplete(self) -> bool:
        return bool(self.main.status & Status.INCOMPLETE)


def read_kdump_header(file: ImageFile) -> KdumpHeader:
    """Both headers.

    Raises:
        UnsupportedError: a form of the format that is recognised but not read.
        FormatError: a field has an impossible value.
        TruncatedError: the file ends inside its headers.
        OSError: the device failed.
    """
    head = file.read(0, MAIN_HEADER_SIZE)
    if len(head) < MAIN_HEADER_SIZE:
        raise TruncatedError("kdump", 0, "main header", MAIN_HEADER_SIZE, len(head))
    _check_variant(head)
    main = MainHeader.parse(head)
    if not OLDEST_VERSION <= main.header_version <= NEWEST_VERSION:
        raise UnsupportedError(
            f"kdump: header version {main.header_version} is not one of "
            f"{OLDEST_VERSION} to {NEWEST_VERSION}"
        )
    check_main_header(main, file.size)
    raw = file.read(main.block_size, SUB_HEADER_SIZE)
    if len(raw) < SUB_HEADER_SIZE:
        end = main.block_size + len(raw)
        raise TruncatedError("kdump", main.block_size, "sub header", SUB_HEADER_SIZE, end)
    return _place(main, SubHeader.parse(raw, main.header_version))


def _check_variant(head: Buffer) -> None:
    variant = identify(head)
    if variant is None:
        wanted = "a page size and large enough bitmaps in some word size and byte order"
        raise FormatError("kdump", 8, "main header", bytes(head[8:12]), wanted)
    if (variant.bits, variant.order) != (64, "<"):
        order = "little" if variant.order == "<" else "big"
        raise UnsupportedError(
            f"kdump: dumps of {variant.bits}-bit {order}-endian machines are not read, only of "
            "64-bit little-endian ones"
        )


def _place(main: MainHeader, sub: SubHeader) -> KdumpHeader:
    max_mapnr = sub.max_mapnr_64 or main.max_mapnr
    if not 1 <= max_mapnr <= MAX_MAPNR:
        raise FormatError("kdump", None, "max_mapnr", max_mapnr, f"1 to {MAX_MAPNR:#x}")
    bitmap_bytes, has_two = bitmap_span(main, max_mapnr)
    bitmap1 = (1 + main.sub_hdr_size) * main.block_size
    start, end = 0, max_mapnr
    if sub.split:
        if main.header_version >= NEWEST_VERSION:
            start, end = sub.start_pfn_64, sub.end_pfn_64
        else:
            start, end = sub.start_pfn, sub.end_pfn
        if not start <= end <= max_mapnr:
            wanted = f"a range inside 0 to {max_mapnr:#x}"
            raise FormatError("kdump", None, "start_pfn, end_pfn", (start, end), wanted)
    return KdumpHeader(
        main=main,
        sub=sub,
        max_mapnr=max_mapnr,
        start_pfn=start,
        end_pfn=end,
        bitmap1_start=bitmap1,
        bitmap2_start=bitmap1 + bitmap_bytes if has_two else bitmap1,
        descriptors_start=bitmap1 + main.bitmap_blocks * main.block_size,
    )


def read_kdump_info(file: ImageFile, header: KdumpHeader) -> ImageInfo:
    """Everything about the image but its pages; parts that are cut off are empty."""
    main, sub = header.main, header.sub
    notes, problem = _read_area(file, "notes", sub.offset_note, sub.size_note, MAX_NOTE_BYTES)
    facts = summarize_notes(notes)
    erased, _ = _read_area(
        file, "eraseinfo", sub.offset_eraseinfo, sub.size_eraseinfo, MAX_ERASEINFO_BYTES
    )
    vmcoreinfo, offset = _find_vmcoreinfo(file, sub, facts)
    level = sub.dump_level
    if not 0 <= level <= _MAX_LEVEL:
        level, problem = 0, problem or f"dump_level {level} makes no sense"
    known_name = any(main.utsname)
    lost = _why_incomplete(file, header)
    return ImageInfo(
        form="kdump",
        machine=_machine(main, facts),
        page_size=main.block_size,
        notes=notes,
        vmcoreinfo=vmcoreinfo,
        vmcoreinfo_off=offset,
        nr_cpus=max(main.nr_cpus, 0),
        made_by="qemu" if facts.has_qemu else None,
        dump_level=level,
        phys_base=sub.phys_base,
        utsname=main.utsname if known_name else None,
        timestamp=main.tv_sec or None,
        eraseinfo=erased,
        incomplete=lost or problem,
        has_lost_pages=lost is not None,
    )


def _why_incomplete(file: ImageFile, header: KdumpHeader) -> str | None:
    if file.incomplete is not None:
        return file.incomplete
    if header.incomplete:
        return "marked incomplete by its writer: some pages are missing"
    if header.sub.split:
        return (
            f"one part of a split dump: pfns {header.start_pfn:#x} to {header.end_pfn:#x} "
            f"of {header.max_mapnr:#x}, the other parts are missing"
        )
    return None


def _read_area(
    file: ImageFile, what: str, start: int, size: int, limit: int
) -> tuple[bytes, str | None]:
    """Bytes that a sub header's offset and size name, and what is wrong with them, if anything."""
    if size == 0:
        return b"", None
    if start <= 0 or size > limit:
        return b"", f"{what}: {size} bytes at {start:#x} make no sense"
    area = file.read(start, size)
    return area, None if len(area) == size else f"{what}: {len(area)} of {size} bytes are there"


def _find_vmcoreinfo(
    file: ImageFile, sub: SubHeader, facts: NoteFacts
) -> tuple[bytes | None, int | None]:
    """The text, and where it is inside the notes: by the sub header, else by the notes."""
    start, size = sub.offset_vmcoreinfo, sub.size_vmcoreinfo
    if size == 0:
        return facts.vmcoreinfo, facts.vmcoreinfo_off
    text, problem = _read_area(file, "vmcoreinfo", start, size, MAX_NOTE_BYTES)
    if problem is not None:
        return facts.vmcoreinfo, facts.vmcoreinfo_off
    inside = sub.offset_note <= start and start + size <= sub.offset_note + sub.size_note
    return text, start - sub.offset_note if inside else None


def _machine(main: MainHeader, facts: NoteFacts) -> str:
    """utsname.machine; makedumpfile leaves it empty when the image had no VMCOREINFO."""
    name = utsname_strings(main.utsname)[4]
    return name if name.isascii() and name.isprintable() and name else facts.machine or "unknown"


def read_bitmap(file: ImageFile, start: int, n_pages: int) -> PageBitmap:
    """The bitmap at byte `start`, block by block; what is cut off reads as clear."""
    out = PageBitmap(n_pages)
    step = _READ_BLOCKS * BLOCK_BYTES
    n_bytes = -(-n_pages // 8)
    for done in range(0, n_bytes, step):
        raw = file.read(start + done, min(step, n_bytes - done))
        if not raw:
            break
        _add_blocks(out, done // BLOCK_BYTES, raw)
    return out


def _add_blocks(out: PageBitmap, first: int, raw: bytes) -> None:
    packed = np.zeros((-(-len(raw) // BLOCK_BYTES), BLOCK_BYTES), dtype=np.uint8)
    packed.reshape(-1)[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    for at in np.flatnonzero(packed.any(axis=1)).tolist():
        bits = np.unpackbits(packed[at], bitorder="little").view(np.bool_)
        bits[max(out.n_pages - (first + at) * BLOCK_PAGES, 0) :] = False
        out.set_block(first + at, bits)


def restrict(bitmap: PageBitmap, start: int, stop: int) -> PageBitmap:
    """A copy of `bitmap` with nothing outside [start, stop)."""
    out = bitmap.copy()
    out.clear_range(0, start)
    out.clear_range(stop, bitmap.n_pages)
    return out
