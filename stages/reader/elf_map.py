"""From PT_LOADs to pages: which pages there are, and where in the file each one lies.

A page is in the file as a whole (nearly all are), or in parts, when a load starts or ends inside
it; what no load covers of such a page reads as zero::

    loads     |-------- 1 --------|     |--- 2 ---~~~~~~|     ~ p_memsz beyond p_filesz
                  |- 3 -|                                      3 loses to 1, file order decides
    pieces    |-------------------|     |---------|
    runs        [ whole pages   )         [      )
    odd       ^                   ^     ^         ^
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from msgspec import Struct

from pipeline.errors import FormatError, UnsupportedError
from pipeline.memory.arrays import distinct
from pipeline.memory.extents import EMPTY, ExtentSet
from stages.reader.elf_head import NO_OFFSET
from stages.reader.image import ImageInfo, LoadSegment
from stages.reader.pieces import IntArray, Pieces, make_disjoint

MAX_RAM_BYTES: Final = 1 << 47
"""128 TiB described in all: bitmaps have an entry for every 128 MiB of it."""


class ElfMap(Struct, frozen=True):
    """Pages of an ELF image.

    Attributes:
        first, stop: int64[n_runs] pfns; whole pages, disjoint and ascending, never empty.
        delta: int64[n_runs]; page `pfn` of run i is at `pfn * page_size + delta[i]` in the file.
        odd: int64[n] pfns of pages that lie in parts, or in part only; ascending.
        pieces: where single bytes lie, for the odd pages.
        zero: pages known to be zero although the file does not have them.
        file_end: end of the last byte that a load claims to have in the file.
    """

    first: IntArray
    stop: IntArray
    delta: IntArray
    odd: IntArray
    pieces: Pieces
    ram: ExtentSet
    saved: ExtentSet
    zero: ExtentSet
    max_mapnr: int
    file_end: int


def were_filtered(loads: list[LoadSegment]) -> bool:
    """Whether loads look like a dump tool's: their missing tails are pages it left out.

    makedumpfile cuts a load in two behind each long run of excluded pages, which stays in the
    first one's p_memsz; so a load goes on exactly where such a tail ends. Nobody else does that,
    but notes of the program that made the source are carried along and prove nothing.
    """
    return any(
        load.file_size < load.mem_size
        and load.paddr is not None
        and following.paddr == load.paddr + load.mem_size
        for load, following in pairwise(loads)
    )


def usable_loads(info: ImageInfo) -> list[LoadSegment]:
    """The loads that describe physical memory, in file order.

    Raises:
        UnsupportedError: there is none.
    """
    used = [load for load in info.loads if load.paddr is not None and load.mem_size > 0]
    if not used:
        what = "an ELF core without physical memory: no PT_LOAD has a p_paddr and a p_memsz"
        raise UnsupportedError(f"{what}; {info.incomplete}" if info.incomplete else what)
    return used


def _paddr(load: LoadSegment) -> int:
    assert load.paddr is not None
    return load.paddr


def map_loads(loads: list[LoadSegment], page_size: int, *, tails_are_zero: bool) -> ElfMap:
    """Work out where every page is.

    Args:
        loads: as `usable_loads` gives them.
        page_size: bytes.
        tails_are_zero: p_memsz beyond p_filesz reads as zero (QEMU), instead of having been
            filtered out (makedumpfile).

    Raises:
        FormatError: more memory than any machine has.
    """
    ram = _memory(loads, page_size)
    if ram.n_pages * page_size > MAX_RAM_BYTES:
        described = f"{ram.n_pages * page_size:#x} bytes of memory"
        raise FormatError("elf", None, "PT_LOADs", described, f"{MAX_RAM_BYTES:#x} at most")
    filled = [load for load in loads if load.file_size]
    starts = np.array([_paddr(load) for load in filled], dtype=np.int64)
    stops = starts + np.array([load.file_size for load in filled], dtype=np.int64)
    offs = np.array([load.file_off for load in filled], dtype=np.int64)
    pieces = make_disjoint(starts, stops, offs)
    covered = _page_extents(pieces.starts, pieces.stops, page_size)
    zero = EMPTY
    if tails_are_zero:
        kept = [load for load in loads if load.file_off != NO_OFFSET]
        zero = _memory(kept, page_size).subtract(covered)
    first, stop = -(-pieces.starts // page_size), pieces.stops // page_size
    whole = first < stop
    return ElfMap(
        first=first[whole],
        stop=stop[whole],
        delta=(pieces.offs - pieces.starts)[whole],
        odd=_odd_pages(pieces, page_size),
        pieces=pieces,
        ram=ram,
        saved=covered.union(zero) if len(zero) else covered,
        zero=zero,
        max_mapnr=ram.end,
        file_end=int((offs + stops - starts).max()) if len(offs) else 0,
    )


def _memory(loads: list[LoadSegment], page_size: int) -> ExtentSet:
    """Pages of which `loads` describe a byte."""
    starts = np.array([_paddr(load) for load in loads], dtype=np.int64)
    sizes = np.array([load.mem_size for load in loads], dtype=np.int64)
    return _page_extents(starts, starts + sizes, page_size)


def _page_extents(starts: IntArray, stops: IntArray, page_size: int) -> ExtentSet:
    """Pages with a byte in one of the byte ranges, which may overlap and come in any order."""
    if not len(starts):
        return EMPTY
    order = np.argsort(starts)
    firsts = starts[order] // page_size
    reach = np.maximum.accumulate(-(-stops[order] // page_size))
    breaks = np.flatnonzero(firsts[1:] > reach[:-1])
    heads = np.concatenate(([0], breaks + 1))
    tails = np.append(breaks, len(order) - 1)
    return ExtentSet(firsts[heads].astype(np.uint64), reach[tails].astype(np.uint64))


def _odd_pages(pieces: Pieces, page_size: int) -> IntArray:
    """Pages in which a piece starts or ends."""
    edges = np.concatenate((pieces.starts, pieces.stops))
    return distinct(edges[edges % page_size != 0] // page_size)
