"""Build kdump-compressed dumps from a description, without any of the product's own code.

Every page is given by hand, so the dump can be one that no tool would write::

    KdumpWriter(max_mapnr=64).page(3, described(3), codec="zstd").excluded(4, 8).write(path)

`flatten` wraps any file's bytes into the flattened form.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cramjam
import lzallright
import zstandard

FLAGS: Final = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
_MAIN: Final = {
    64: "8si390s6xqqIiiIIIIIIi",
    32: "8si390s2xiiIiiIIIIIIi",
}
_SUB: Final = "QiiQQqQqQqQQQQ"


def compress(codec: str, page: bytes) -> bytes:
    """One page by the codec's own library."""
    match codec:
        case "zlib":
            return zlib.compress(page, 1)
        case "lzo":
            return bytes(lzallright.LZOCompressor().compress(page))
        case "snappy":
            return bytes(cramjam.snappy.compress_raw(page))
        case "zstd":
            return zstandard.ZstdCompressor(level=1).compress(page)
    return page


def utsname(machine: str = "x86_64", release: str = "6.1.0-test") -> bytes:
    """struct new_utsname: six strings of 65 bytes."""
    fields = ("Linux", "host", release, "#1 SMP", machine, "(none)")
    return b"".join(text.encode().ljust(65, b"\0") for text in fields)


@dataclass
class _Page:
    data: bytes
    flags: int
    size: int
    offset: int | None  # None: behind the previous page's data
    shares_zero: bool = False


@dataclass
class KdumpWriter:
    """A dump under construction; pages may be given in any order.

    Attributes:
        lies: header fields to overwrite: names of the main and sub header as the format's own
            declarations spell them.
        single_bitmap: one bitmap for both uses, as old full dumps have.
        span: [start_pfn, end_pfn) of a split part; pages outside have a bit but no descriptor.
        zero_page: the data area starts with a page of zeros.
    """

    max_mapnr: int
    page_size: int = 4096
    version: int = 6
    status: int = 0
    dump_level: int = 0
    phys_base: int = 0
    utsname: bytes = field(default_factory=utsname)
    timestamp: int = 0
    nr_cpus: int = 0
    notes: bytes = b""
    vmcoreinfo: tuple[int, int] | None = None
    eraseinfo: bytes = b""
    single_bitmap: bool = False
    span: tuple[int, int] | None = None
    zero_page: bool = False
    order: str = "<"
    bits: int = 64
    lies: dict[str, int] = field(default_factory=dict)
    _pages: dict[int, _Page] = field(default_factory=dict, init=False)
    _ram: set[int] = field(default_factory=set, init=False)

    def page(
        self,
        pfn: int,
        data: bytes,
        *,
        codec: str = "none",
        flags: int | None = None,
        size: int | None = None,
        offset: int | None = None,
    ) -> KdumpWriter:
        """A dumped page; `data` is encoded by `codec` if that makes it smaller.

        The rest overrides its descriptor.
        """
        coded = compress(codec, data)
        if len(coded) >= len(data):
            coded, codec = data, "none"
        self._pages[pfn] = _Page(
            coded,
            FLAGS[codec] if flags is None else flags,
            len(coded) if size is None else size,
            offset,
        )
        self._ram.add(pfn)
        return self

    def zero(self, pfn: int) -> KdumpWriter:
        """A page that names the shared page of zeros."""
        assert self.zero_page
        self._pages[pfn] = _Page(b"", 0, self.page_size, None, shares_zero=True)
        self._ram.add(pfn)
        return self

    def lost(self, pfn: int) -> KdumpWriter:
        """A page that was to be dumped, and was not."""
        return self.page(pfn, b"", size=0, offset=0)

    def excluded(self, start: int, stop: int) -> KdumpWriter:
        """Pages [start, stop) that existed and were left out."""
        self._ram.update(range(start, stop))
        return self

    @property
    def _bitmap_bytes(self) -> int:
        return -(-self.max_mapnr // (8 * self.page_size)) * self.page_size

    @property
    def _sub_blocks(self) -> int:
        n_bytes = struct.calcsize("<" + _SUB) + len(self.notes) + len(self.eraseinfo)
        return -(-n_bytes // self.page_size)

    @property
    def descriptors_start(self) -> int:
        n_bitmaps = 1 if self.single_bitmap else 2
        return (1 + self._sub_blocks) * self.page_size + n_bitmaps * self._bitmap_bytes

    @property
    def data_start(self) -> int:
        """Where it lies with the pages given so far: their descriptors come first."""
        return self.descriptors_start + 24 * len(self._pages)

    def _bitmap(self, pfns: Iterable[int]) -> bytes:
        out = bytearray(self._bitmap_bytes)
        for pfn in pfns:
            out[pfn >> 3] |= 1 << (pfn & 7)
        return bytes(out)

    def pack_headers(self) -> bytes:
        """Block 0 up to the first bitmap."""
        notes_start = self.page_size + struct.calcsize("<" + _SUB)
        info = self.vmcoreinfo
        main = {
            "signature": b"KDUMP   ",
            "header_version": self.version,
            "utsname": self.utsname,
            "tv_sec": self.timestamp,
            "tv_usec": 0,
            "status": self.status,
            "block_size": self.page_size,
            "sub_hdr_size": self._sub_blocks,
            "bitmap_blocks": (1 if self.single_bitmap else 2)
            * self._bitmap_bytes
            // self.page_size,
            "max_mapnr": min(self.max_mapnr, 2**32 - 1),
            "total_ram_blocks": 0,
            "device_blocks": 0,
            "written_blocks": 0,
            "current_cpu": 0,
            "nr_cpus": self.nr_cpus,
        }
        start, end = self.span or (0, 0)
        sub = {
            "phys_base": self.phys_base & (2**64 - 1),
            "dump_level": self.dump_level,
            "split": 1 if self.span else 0,
            "start_pfn": start,
            "end_pfn": end,
            "offset_vmcoreinfo": notes_start + info[0] if info else 0,
            "size_vmcoreinfo": info[1] if info else 0,
            "offset_note": notes_start if self.notes else 0,
            "size_note": len(self.notes),
            "offset_eraseinfo": notes_start + len(self.notes) if self.eraseinfo else 0,
            "size_eraseinfo": len(self.eraseinfo),
            "start_pfn_64": start,
            "end_pfn_64": end,
            "max_mapnr_64": self.max_mapnr,
        }
        for name, value in self.lies.items():
            assert name in main or name in sub, name
            (main if name in main else sub)[name] = value
        head = struct.pack(self.order + _MAIN[self.bits], *main.values())
        tail = struct.pack(self.order + _SUB, *sub.values()) + self.notes + self.eraseinfo
        room = self._sub_blocks * self.page_size
        return head.ljust(self.page_size, b"\0") + tail.ljust(room, b"\0")

    def pack(self) -> bytes:
        """The whole file."""
        in_part = sorted(
            pfn for pfn in self._pages if self.span is None or self.span[0] <= pfn < self.span[1]
        )
        data = bytearray(self.page_size if self.zero_page else 0)
        table = bytearray()
        for pfn in in_part:
            page = self._pages[pfn]
            offset = page.offset
            if page.shares_zero:
                offset = self.data_start
            elif offset is None:
                offset = self.data_start + len(data)
                data += page.data
            table += struct.pack(self.order + "qIIQ", offset, page.size, page.flags, 0)
        bitmaps = [self._bitmap(self._ram), self._bitmap(self._pages)]
        if self.single_bitmap:
            bitmaps.pop(0)
        room = 24 * len(self._pages)
        return self.pack_headers() + b"".join(bitmaps) + table.ljust(room, b"\0") + data

    def write(self, path: Path, *, cut_at: int | None = None) -> Path:
        path.write_bytes(self.pack()[:cut_at])
        return path


def flatten(
    blob: bytes, *, record_bytes: int = 1000, extra: Iterable[tuple[int, bytes]] = ()
) -> bytes:
    """`blob` as a flattened stream, its records from the last to the first, then `extra` ones.

    Records of zeros only are left out: what nobody wrote reads as zero.
    """
    out = bytearray(b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    starts = range(0, len(blob), record_bytes)
    records = [(start, blob[start : start + record_bytes]) for start in reversed(starts)]
    for start, data in [*records, *extra]:
        if data.strip(b"\0") or start + len(data) == len(blob):
            out += struct.pack(">qq", start, len(data)) + data
    return bytes(out + struct.pack(">qq", -1, -1))
