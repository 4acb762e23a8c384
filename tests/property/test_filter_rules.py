"""The vectorised filter against the same rules written down page by page."""

from __future__ import annotations

from typing import Final

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.memory.addresses import BoolArray, ByteArray
from stages.filter.classify import page_codes
from stages.filter.levels import PageClass
from stages.filter.page_layout import CompoundRule, PageLayout
from stages.filter.runs import NO_CARRY, Carry, resolve_runs
from tests.support.slow_filter import SlowFilter
from tests.unit.filter.struct_rows import GENERATIONS, layout_of

LAYOUTS: Final = {generation: layout_of(generation) for generation in GENERATIONS}
LAYOUTS["6.1 without compound"] = layout_of("6.1", OFFSET_page__compound_head=None)
LAYOUTS["6.12 without slab"] = layout_of("6.12", NUMBER_PAGE_SLAB_MAPCOUNT_VALUE=None)
LAYOUTS["6.1 high bits"] = layout_of("6.1", NUMBER_PG_hwpoison="40", NUMBER_PG_private="63")
LAYOUTS["7.1 odd size"] = layout_of("7.1", SIZE_page="76")
_WINDOW: Final = 512


def _flags(layout: PageLayout) -> st.SearchStrategy[int]:
    """Any of the bits that mean something, and low bytes that read as orders in page1."""
    masks = layout.masks
    known = [masks.lru, masks.private, masks.swapcache, masks.head, masks.hwpoison, masks.slab]
    known += [masks.swapcache & -masks.swapcache, layout.compound.hugetlb_flag]
    bits = st.lists(st.sampled_from([mask for mask in known if mask]), max_size=3)
    low = st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 255))
    return st.tuples(bits, low).map(lambda pair: sum(set(pair[0])) | pair[1])


def _mapcounts(layout: PageLayout) -> st.SearchStrategy[int]:
    types = layout.types
    known = [types.buddy, types.slab, types.hugetlb, types.offline, types.unaccepted]
    values = [value for value in known if value is not None]
    near = [value ^ 5 for value in values]
    return st.sampled_from([0, 0xFFFFFFFF, *values, *values, *near])


def _struct_pages(layout: PageLayout) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries(
        {
            "flags": _flags(layout),
            "compound": st.sampled_from([0, 0, 0, 0xFFFF880000000001, 0xDEAD000000000100]),
            "mapping": st.sampled_from([0, 0, 1, 2, 3, 0xFFFF888000000000]),
            "private": st.sampled_from([0, 1, 2, 3, 5, 9, 10, 11, 64, (1 << 64) - 1]),
            "mapcount": _mapcounts(layout),
            "bytes": st.integers(0, 0xFFFF),
        }
    )


@st.composite
def memmaps(draw: st.DrawFn) -> tuple[PageLayout, ByteArray, int]:
    """A layout, a few interesting struct pages in random places of some batches, a first pfn."""
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    palette = draw(st.lists(_struct_pages(layout), min_size=1, max_size=12))
    n_pages = draw(st.sampled_from([1, 7, 64, 511, 512, 1024, 1536]))
    n_blank = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.zeros((len(palette) + 1, layout.size), dtype=np.uint8)
    for row, words in zip(rows[1:], palette, strict=True):
        _store(row, layout, words)
    chosen = rng.integers(-n_blank, len(palette) + 1, n_pages).clip(0)
    first_pfn = draw(st.integers(0, 1 << 20)) * _WINDOW
    found = rows[chosen]
    if draw(st.booleans()):
        _align_buddies(found, layout, first_pfn)
    return layout, found.reshape(-1), first_pfn


def _align_buddies(rows: ByteArray, layout: PageLayout, first_pfn: int) -> None:
    """Lower the orders of free blocks to what their pfns allow, as in memory that is not corrupt.

    Blocks inside blocks stay: merging leaves the old orders where they were.
    """
    at, value = layout.mapcount_off, layout.types.buddy
    if at is None or value is None or layout.private_off is None:
        return
    buddies = rows[:, at : at + 4].copy().view("<u4")[:, 0] == value
    for index in np.flatnonzero(buddies).tolist():
        pfn = first_pfn + index
        fitting = (pfn & -pfn).bit_length() - 1 if pfn else 63
        private = rows[index, layout.private_off : layout.private_off + 8]
        order = int.from_bytes(private.tobytes(), "little")
        private[:] = list(min(order, fitting).to_bytes(8, "little"))


def _store(row: ByteArray, layout: PageLayout, words: dict[str, int]) -> None:
    places = {
        "flags": layout.flags_off,
        "compound": layout.compound_off,
        "mapping": layout.mapping_off,
        "private": layout.private_off,
    }
    dtor = words["bytes"].to_bytes(2, "little")
    row[16:18] = list(dtor)
    for name, offset in places.items():
        if offset is not None:
            row[offset : offset + 8] = list(words[name].to_bytes(8, "little"))
    if layout.mapcount_off is not None:
        at = layout.mapcount_off
        row[at : at + 4] = list(words["mapcount"].to_bytes(4, "little"))


def fast(
    layout: PageLayout,
    raw: ByteArray,
    first_pfn: int,
    level: int,
    present: BoolArray,
    carry: Carry,
    window: int,
) -> tuple[list[str], Carry, int]:
    """Labels of all pages, window by window."""
    labels: list[str] = []
    n_bad = 0
    for start in range(0, len(present), window):
        part = present[start : start + window]
        rows = raw[start * layout.size :]
        codes = page_codes(rows, len(part), first_pfn + start, layout, level)
        classes, carry = resolve_runs(codes, first_pfn + start, part, carry)
        labels += [PageClass(int(code)).label for code in classes]
        n_bad += codes.n_bad_orders
    return labels, carry, n_bad


@settings(max_examples=150, deadline=None)
@given(
    memmap=memmaps(),
    level=st.integers(0, 31),
    density=st.sampled_from([1.0, 1.0, 0.9, 0.5]),
    covered=st.integers(0, 700),
    seed=st.integers(0, 2**32 - 1),
)
def test_vectorised_equals_page_by_page(
    memmap: tuple[PageLayout, ByteArray, int],
    level: int,
    density: float,
    covered: int,
    seed: int,
) -> None:
    """On any struct pages, stale data inside runs and absent pages included."""
    layout, raw, first_pfn = memmap
    n_pages = len(raw) // layout.size
    present = np.random.default_rng(seed).random(n_pages) < density
    carry = Carry(first_pfn + covered, PageClass.USER) if covered % 3 == 0 else NO_CARRY
    slow = SlowFilter(raw.tobytes(), first_pfn, layout, level).run(
        present.tolist(), carry.stop, carry.page_class.label
    )
    labels, after, _ = fast(layout, raw, first_pfn, level, present, carry, n_pages)

    assert labels == [name or "kept" for name in slow.classes]
    assert (after.stop, after.page_class.label) == (slow.carry_stop, slow.carry_class)


@settings(max_examples=60, deadline=None)
@given(memmap=memmaps(), level=st.integers(0, 31))
def test_windows_do_not_matter(memmap: tuple[PageLayout, ByteArray, int], level: int) -> None:
    """Batch by batch or at once: the same pages under the same classes."""
    layout, raw, first_pfn = memmap
    present = np.ones(len(raw) // layout.size, dtype=np.bool_)
    whole = fast(layout, raw, first_pfn, level, present, NO_CARRY, len(present))
    parts = fast(layout, raw, first_pfn, level, present, NO_CARRY, _WINDOW)

    assert parts == whole


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_pages=st.integers(1, 700),
    generation=st.sampled_from(GENERATIONS),
    level=st.integers(0, 31),
)
def test_noise_never_raises(seed: int, n_pages: int, generation: str, level: int) -> None:
    """Bytes that were never a struct page give an answer all the same."""
    layout = LAYOUTS[generation]
    raw = np.frombuffer(np.random.default_rng(seed).bytes(n_pages * 64), dtype=np.uint8)
    present = np.ones(n_pages, dtype=np.bool_)
    slow = SlowFilter(raw.tobytes(), 512, layout, level).run(present.tolist())
    labels, _, _ = fast(layout, raw, 512, level, present, NO_CARRY, n_pages)

    assert labels == [name or "kept" for name in slow.classes]


def test_big_endian() -> None:
    """The same words in the other byte order give the same classes and runs."""
    little = LAYOUTS["6.12"]
    big = replace(little, byte_order=">", compound=CompoundRule(order_off=7))
    rng = np.random.default_rng(5)
    words = np.zeros((64, 8), dtype="<u8")
    words[:, 0] = rng.choice([little.masks.lru, little.masks.head, 0, 2], 64)
    words[:, 1] = rng.choice([0, 0, 1], 64)
    words[:, 3] = rng.choice([0, 1], 64)
    words[:, 5] = 3
    types = rng.choice([0xFFFFFFFF, 0xF0000000, 0xF5000000], 64).astype("<u4")
    swapped = words.astype(">u8")
    words[:, 6] = types
    swapped.view(">u4")[:, 12] = types
    found = page_codes(swapped.view(np.uint8).reshape(-1), 64, 0, big, 31)
    wanted = page_codes(words.view(np.uint8).reshape(-1), 64, 0, little, 31)

    assert len(set(wanted.codes.tolist())) >= 3
    assert found.codes.tolist() == wanted.codes.tolist()
    assert found.orders.tolist() == wanted.orders.tolist()
