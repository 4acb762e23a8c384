"""Random mappings, and a plain dictionary-like model of them to compare a walker with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from hypothesis import strategies as st

from pipeline.memory.addresses import AddrArray
from stages.arch.paging import PagingForm
from stages.arch.x86_64 import FIVE_LEVELS, FOUR_LEVELS
from stages.translator.tables import TableReader
from tests.support.pagetable_builder import DictPages, PageTableBuilder
from tests.unit.arch.other_forms import OTHER_FORMS

ALL_FORMS: Final = (FOUR_LEVELS, FIVE_LEVELS, *OTHER_FORMS)
ROOT: Final = 0x100000


def addresses(*values: int) -> AddrArray:
    return np.array(values, dtype=np.uint64)


def tables_of(builder: PageTableBuilder) -> TableReader:
    """A reader over what was built."""
    pages = DictPages(builder.pages, page_size=1 << builder.form.page_bits)
    return TableReader(pages, builder.form.entry_order)


@st.composite
def mappings(draw: Callable[..., int], form: PagingForm) -> PageTableBuilder:
    """A few leaves of every size, near each other, so that they share tables and touch."""
    builder = PageTableBuilder(form, ROOT)
    reach = {
        leaf.span_bits: sum(piece.mask << piece.shift for piece in leaf.address)
        for level in form.levels
        for leaf in level.leaves
    }
    spans = sorted(reach)
    window = form.windows[draw(st.integers(0, len(form.windows) - 1))]
    low = min(level.shift for level in form.levels)
    base = draw(st.integers(window.first >> low, window.last >> low)) << low
    for _ in range(draw(st.integers(1, 6))):
        span = spans[draw(st.integers(0, len(spans) - 1))]
        vaddr = ((base >> span) + draw(st.integers(-3, 3))) << span
        paddr = draw(st.integers(0, (1 << 56) - 1)) & reach[span] >> span << span
        inside = window.first <= vaddr and vaddr + (1 << span) - 1 <= window.last
        if inside and model(builder, vaddr, 1 << span) == (None, True):
            builder.map(vaddr, paddr, span)
    return builder


def model(builder: PageTableBuilder, vaddr: int, n_bytes: int = 1) -> tuple[int | None, bool]:
    """Where `vaddr` is mapped, and whether nothing else of the `n_bytes` from it on is."""
    found = None
    alone = True
    for start, paddr, span_bits in builder.placed:
        if start <= vaddr < start + (1 << span_bits):
            found = paddr + vaddr - start
        elif start < vaddr + n_bytes and vaddr < start + (1 << span_bits):
            alone = False
    return found, alone


def interesting(builder: PageTableBuilder) -> list[int]:
    """Addresses at, just inside and just outside the edges of everything that is mapped."""
    edges = {0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1}
    for start, _, span_bits in builder.placed:
        end = start + (1 << span_bits)
        edges |= {start - 1, start, start + 1, start + (1 << span_bits) // 3, end - 1, end}
    return sorted(edge for edge in edges if 0 <= edge < 1 << 64)
