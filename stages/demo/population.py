"""What the demo machine's memory is used for, one chunk of 1024 pages after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from stages.demo.kernels import N_ORDERS
from stages.demo.kinds import PageKind
from stages.demo.struct_pages import (
    ANON_MAPPING,
    FILE_MAPPING,
    KSM_MAPPING,
    MOVABLE_MAPPING,
    Pfns,
    StructPages,
)

CHUNK_PAGES: Final = 1 << (N_ORDERS - 1)
_EACH: Final = 4
"""Pages of each kind among the exhibits."""


def populate(pages: StructPages, first_chunks: Pfns, rng: np.random.Generator) -> None:
    """Give every chunk that starts at one of `first_chunks` (aligned pfns) a use.

    The first eight show everything once; the others are mostly free and cached, as machines are.
    """
    has_unaccepted = pages.kernel.types.unaccepted is not None
    last = _unaccepted if has_unaccepted else _free_mixed
    shown = (_exhibits, _free, _huge, _mixed, _cache, _anon, _slab, last)
    common = (_free, _free, _free, _cache, _anon, _free_mixed, _mixed, _kernel)
    for number, start in enumerate(first_chunks.tolist()):
        uses: tuple[Callable[[StructPages, int, np.random.Generator], None], ...]
        uses = shown if number < len(shown) else common
        uses[number % len(uses)](pages, start, rng)


def _span(start: int, n_pages: int, step: int = 1) -> Pfns:
    return np.arange(start, start + n_pages, step, dtype=np.int64)


def _kernel(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    pages.set(_span(start, CHUNK_PAGES), PageKind.KERNEL)


def _free(pages: StructPages, start: int, rng: np.random.Generator) -> None:
    """One block of the largest order; here and there a page still looks as it did when used."""
    pages.free(_span(start, 1), N_ORDERS - 1)
    stale = start + 1 + rng.choice(CHUNK_PAGES - 1, 32, replace=False)
    pages.set(stale, PageKind.STALE_FREE, mapping=ANON_MAPPING)


def _free_mixed(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    """Blocks of every order below the largest; what is left over is the kernel's."""
    _kernel(pages, start, _rng)
    for order in range(N_ORDERS - 1):
        pages.free(_span(start + (1 << order), 1), order)


def _unaccepted(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    """Memory that a guest has not accepted yet: only the first page says so."""
    pages.set(_span(start, CHUNK_PAGES), PageKind.UNACCEPTED)
    pages.rows["mapcount"][start] = pages.kernel.types.unaccepted


def _huge(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    half = CHUNK_PAGES // 2
    bits = pages.kernel.bits
    pages.compound(_span(start, 1), 9, PageKind.HUGETLB)
    pages.compound(
        _span(start + half, 1),
        9,
        PageKind.THP,
        bits.lru,
        bits.swapbacked,
        mapping=ANON_MAPPING,
        mapcount=0,
    )


def _cache(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    bits = pages.kernel.bits
    pages.set(_span(start, CHUNK_PAGES), PageKind.CACHE, bits.lru, mapping=FILE_MAPPING)
    private = _span(start, CHUNK_PAGES // 2, 8)
    pages.set(
        private, PageKind.CACHE_PRIVATE, bits.lru, bits.private, mapping=FILE_MAPPING, private=1
    )
    folios = _span(start + CHUNK_PAGES // 2, CHUNK_PAGES // 4, 16)
    pages.compound(folios, 4, PageKind.LARGE_FOLIO, bits.lru, mapping=FILE_MAPPING)


def _anon(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    bits = pages.kernel.bits
    anon = _span(start, CHUNK_PAGES)
    pages.set(anon, PageKind.ANON, bits.lru, bits.swapbacked, mapping=ANON_MAPPING, mapcount=0)
    # Somebody waits for these. v6.10 and later have the bit that PG_slab had in old makedumpfile.
    pages.rows["flags"][anon[::16]] |= np.uint64(1 << bits.waiters)


def _slab(pages: StructPages, start: int, _rng: np.random.Generator) -> None:
    half = CHUNK_PAGES // 2
    pages.slab(_span(start, half, 8), 3)
    pages.slab(_span(start + half, half), 0)


def _mixed(pages: StructPages, start: int, rng: np.random.Generator) -> None:
    """Single pages of all common kinds, well shuffled: what memory looks like after a while."""
    bits = pages.kernel.bits
    pfns = start + rng.permutation(CHUNK_PAGES)
    parts = np.split(pfns, 4)
    pages.set(parts[0], PageKind.KERNEL)
    pages.set(parts[1], PageKind.CACHE, bits.lru, mapping=FILE_MAPPING)
    pages.set(parts[2], PageKind.ANON, bits.lru, mapping=ANON_MAPPING, mapcount=0)
    pages.free(np.sort(parts[3]), 0)


def _exhibits(pages: StructPages, start: int, rng: np.random.Generator) -> None:
    """A few pages of every kind there is, and blocks and compounds of several orders."""
    _kernel(pages, start, rng)
    _single_exhibits(pages, start)
    bits, types = pages.kernel.bits, pages.kernel.types
    pages.compound(_span(start + 128, 1), 4, PageKind.LARGE_FOLIO, bits.lru, mapping=FILE_MAPPING)
    pages.compound(
        _span(start + 144, 1), 2, PageKind.THP, bits.lru, mapping=ANON_MAPPING, mapcount=0
    )
    pages.slab(_span(start + 152, 16, 8), 3)
    if types.large_kmalloc is not None:
        pages.compound(
            _span(start + 168, 1), 2, PageKind.TYPED, mapcount=types.large_kmalloc,
            tail_mapping=ANON_MAPPING,
        )  # fmt: skip
    for order in range(7):
        pages.free(_span(start + 256 + (1 << order), 1), order)
    pages.set(_span(start + 321, 5), PageKind.STALE_FREE, mapping=ANON_MAPPING)
    pages.compound(_span(start + 512, 1), 9, PageKind.HUGETLB)


def _single_exhibits(pages: StructPages, start: int) -> None:
    bits, types = pages.kernel.bits, pages.kernel.types
    at = start

    def show(kind: PageKind, *flags: int, **words: int) -> None:
        nonlocal at
        pages.set(_span(at, _EACH), kind, *flags, **words)
        at += _EACH

    show(PageKind.CACHE, bits.lru, mapping=FILE_MAPPING)
    show(PageKind.CACHE_PRIVATE, bits.lru, bits.private, mapping=FILE_MAPPING)
    show(PageKind.SHMEM_SWAPCACHE, bits.swapcache, bits.swapbacked, mapping=FILE_MAPPING)
    show(PageKind.OWNER_PRIVATE, bits.swapcache, mapping=FILE_MAPPING)
    show(PageKind.ANON, bits.lru, bits.waiters, mapping=ANON_MAPPING, mapcount=0)
    show(PageKind.ANON, bits.lru, bits.private, mapping=ANON_MAPPING, mapcount=0)
    show(PageKind.ANON, bits.swapcache, bits.swapbacked, mapping=ANON_MAPPING)
    show(PageKind.KSM, bits.lru, mapping=KSM_MAPPING, mapcount=2)
    show(PageKind.MOVABLE, bits.private, mapping=MOVABLE_MAPPING)
    show(PageKind.HWPOISON, bits.hwpoison)
    show(PageKind.OFFLINE, mapcount=types.offline)
    show(PageKind.TYPED, mapcount=types.table)
    show(PageKind.TYPED, mapcount=types.guard)
    show(PageKind.BAD_BUDDY, mapcount=types.buddy, private=N_ORDERS)
    show(PageKind.BAD_BUDDY, mapcount=types.buddy, private=(1 << 64) - 1)
    if types.slab is not None:  # types in the top byte: the rest is the owner's
        show(PageKind.OFFLINE_TAGGED, mapcount=types.offline | 5)
