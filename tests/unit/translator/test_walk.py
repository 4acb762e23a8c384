"""Walking many addresses at once."""

from __future__ import annotations

import random

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.arch.paging import PagingForm
from stages.arch.x86_64 import FIVE_LEVELS, FOUR_LEVELS
from stages.translator.tables import TableReader
from stages.translator.walk import NON_CANONICAL, walk
from tests.support.pagetable_builder import DictPages, PageTableBuilder, table_entry
from tests.unit.arch.other_forms import S390X_3
from tests.unit.translator.mappings import (
    ALL_FORMS,
    ROOT,
    addresses,
    interesting,
    mappings,
    model,
    tables_of,
)

DIRECT = 0xFFFF888000000000


class TestAgainstModel:
    @pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
    @given(data=st.data())
    @settings(max_examples=25, deadline=None)
    def test_every_edge(self, form: PagingForm, data: st.DataObject) -> None:
        """A walk agrees with the list of what was mapped, at every edge, in any order."""
        builder = data.draw(mappings(form))
        asked = interesting(builder) * 2
        random.Random(len(asked)).shuffle(asked)

        found = anyio.run(walk, form, ROOT, tables_of(builder), addresses(*asked))

        expected = [model(builder, vaddr)[0] for vaddr in asked]
        seen = [
            int(paddr) if mapped else None
            for paddr, mapped in zip(found.paddrs, found.mapped, strict=True)
        ]
        assert expected == seen


class TestOutcome:
    async def test_names_the_depth_of_failure(self) -> None:
        """The outcome of an address that fails is the depth of the entry that stopped it."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        builder.map(DIRECT, 0x5000, 12)
        asked = addresses(0x0000800000000000, 0, DIRECT + (1 << 30), DIRECT + (1 << 21), DIRECT)

        found = await walk(FOUR_LEVELS, ROOT, tables_of(builder), asked)

        assert found.outcome.tolist() == [NON_CANONICAL, 0, 1, 2, -1]
        assert found.paddrs.tolist() == [0, 0, 0, 0, 0x5000]

    async def test_lost_table(self) -> None:
        """A table that is not in the image stops the walk at its own depth."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        builder.map(DIRECT, 0x5000, 12)
        del builder.pages[max(builder.pages)]

        found = await walk(FOUR_LEVELS, ROOT, tables_of(builder), addresses(DIRECT))

        assert found.outcome.tolist() == [3]

    async def test_lost_table_where_zero_means_page_0(self) -> None:
        """What can't be read maps nothing, even if an entry of zero would be valid."""
        builder = PageTableBuilder(S390X_3, ROOT)
        builder.map(0x5000, 0x5000, 12)
        del builder.pages[max(builder.pages)]

        found = await walk(S390X_3, ROOT, tables_of(builder), addresses(0x5000))

        assert found.outcome.tolist() == [2]

    async def test_reserved_bits(self) -> None:
        """A 2 MiB leaf with address bits below 2 MiB is refused."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        builder.put([0, 0, 0], 0x40000083 | 1 << 13)

        found = await walk(FOUR_LEVELS, ROOT, tables_of(builder), addresses(0x1000))

        assert found.outcome.tolist() == [2]

    async def test_no_addresses(self) -> None:
        """No addresses give no results."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)

        found = await walk(FOUR_LEVELS, ROOT, tables_of(builder), addresses())

        assert len(found.paddrs) == 0


class TestRequests:
    async def test_one_request_a_level(self) -> None:
        """Tables are asked for once each, all of a level in one request."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        for gib in range(4):
            for page in range(3):
                builder.map(DIRECT + (gib << 30) + (page << 21), 0x100000 * page, 12)
        pages = DictPages(builder.pages, page_size=4096)
        asked = addresses(*[start + 8 for start, _, _ in builder.placed] * 50)

        await walk(FOUR_LEVELS, ROOT, TableReader(pages, "<"), asked)

        assert [len(request) for request in pages.requests] == [1, 1, 4, 12]
        assert all(len(set(request)) == len(request) for request in pages.requests)

    async def test_more_tables_than_a_request_may_have(self) -> None:
        """Many tables are asked for in several requests, with the same results."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        for table in range(2500):
            builder.map(DIRECT + (table << 21), table << 12, 12)
        pages = DictPages(builder.pages, page_size=4096)
        asked = addresses(*[start for start, _, _ in builder.placed])

        found = await walk(FOUR_LEVELS, ROOT, TableReader(pages, "<"), asked)

        assert found.mapped.all()
        assert found.paddrs.tolist() == [paddr for _, paddr, _ in builder.placed]
        assert max(len(request) for request in pages.requests) == 1024

    async def test_more_addresses_than_a_chunk(self) -> None:
        """Many addresses, in descending order and several a page, keep their places."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        for leaf in range(200):
            builder.map(DIRECT + (leaf << 21), (leaf * 7) << 21, 21)
        offsets = np.arange(200 << 21, 0, -2500, dtype=np.uint64) - np.uint64(1)

        found = await walk(FOUR_LEVELS, ROOT, tables_of(builder), offsets + np.uint64(DIRECT))

        assert len(offsets) > 2 * (1 << 16)
        assert found.mapped.all()
        leaves = (offsets >> np.uint64(21)) * np.uint64(7 << 21)
        assert np.array_equal(found.paddrs, leaves + (offsets & np.uint64((1 << 21) - 1)))


class TestHostile:
    async def test_self_reference(self) -> None:
        """A top table that points to itself is a table on every level, and the walk ends."""
        builder = PageTableBuilder(FIVE_LEVELS, ROOT)
        builder.put([0x110], table_entry(FIVE_LEVELS.levels[0], ROOT))
        vaddr = sum(0x110 << level.shift for level in FIVE_LEVELS.levels) + (0x7F << 57)

        found = await walk(FIVE_LEVELS, ROOT, tables_of(builder), addresses(vaddr + 7))

        assert found.paddrs.tolist() == [ROOT + 7]

    @given(seed=st.integers(0, 2**32), n_pages=st.integers(1, 6))
    @settings(max_examples=60, deadline=None)
    def test_garbage(self, seed: int, n_pages: int) -> None:
        """Random tables that point at each other never break a walk, nor leave its bounds."""
        rng = np.random.default_rng(seed)
        words = rng.integers(0, 1 << 64, (n_pages, 512), dtype=np.uint64)
        targets = rng.integers(0, n_pages + 1, (n_pages, 512), dtype=np.uint64) << np.uint64(12)
        words = (words & np.uint64(0xFFF0000000000FFF)) | targets
        pages = {pfn: bytearray(row.tobytes()) for pfn, row in enumerate(words)}
        asked = rng.integers(0, 1 << 64, 500, dtype=np.uint64) | np.uint64(0xFFFF800000000000)

        found = anyio.run(
            walk, FOUR_LEVELS, 0, TableReader(DictPages(pages, page_size=4096), "<"), asked
        )

        assert (found.paddrs < 1 << 52).all()
        assert found.paddrs[~found.mapped].sum() == 0
        assert set(found.outcome.tolist()) <= {-1, 0, 1, 2, 3}
