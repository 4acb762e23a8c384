"""Cutting ranges of addresses into runs of memory."""

from __future__ import annotations

import itertools
import time

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError
from stages.arch.paging import PagingForm, Window
from stages.arch.x86_64 import FOUR_LEVELS
from stages.translator.ranges import PhysRun, iter_runs, window_of
from stages.translator.tables import TableReader
from stages.translator.walk import walk
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
WHOLE = Window(0, (1 << 64) - 2)


async def runs_of(
    form: PagingForm, tables: TableReader, window: Window, root: int = ROOT
) -> list[PhysRun]:
    return [run async for run in iter_runs(form, root, tables, window)]


def check_shape(runs: list[PhysRun], window: Window) -> None:
    """Runs cover the window without gaps, and no two that belong together are apart."""
    assert runs[0].vaddr == window.first
    assert runs[-1].vaddr + runs[-1].n_bytes == window.last + 1
    for left, right in itertools.pairwise(runs):
        assert left.vaddr + left.n_bytes == right.vaddr
        if left.paddr is None or right.paddr is None:
            assert left.paddr is not right.paddr
        else:
            assert left.paddr + left.n_bytes != right.paddr


class TestAgainstModel:
    @pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
    @given(data=st.data())
    @settings(max_examples=25, deadline=None)
    def test_any_window(self, form: PagingForm, data: st.DataObject) -> None:
        """Runs of a window agree with the list of what was mapped, whatever the window cuts."""
        builder = data.draw(mappings(form))
        ends = st.sampled_from(interesting(builder)[:-1])
        first, last = sorted((data.draw(ends), min(data.draw(ends), WHOLE.last)))
        window = Window(first, last)

        runs = anyio.run(runs_of, form, tables_of(builder), window)

        check_shape(runs, window)
        for run in runs:
            for at in {run.vaddr, run.vaddr + run.n_bytes - 1, run.vaddr + run.n_bytes // 2}:
                expected = None if run.paddr is None else run.paddr + at - run.vaddr
                assert expected == model(builder, at)[0]
        expected_bytes = sum(
            max(min(start + (1 << span), last + 1) - max(start, first), 0)
            for start, _, span in builder.placed
        )
        assert expected_bytes == sum(run.n_bytes for run in runs if run.paddr is not None)


class TestMerging:
    async def test_neighbours_join_across_tables(self) -> None:
        """Physically contiguous leaves of different sizes and tables become one run."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        builder.map(DIRECT + (1 << 30), 2 << 30, 30)
        builder.map(DIRECT + (2 << 30), 3 << 30, 21)
        builder.map(DIRECT + (2 << 30) + (1 << 21), (3 << 30) + (1 << 21), 12)

        runs = await runs_of(FOUR_LEVELS, tables_of(builder), Window(DIRECT, DIRECT + (3 << 30)))

        n_bytes = (1 << 30) + (1 << 21) + (1 << 12)
        assert [run for run in runs if run.paddr is not None] == [
            PhysRun(DIRECT + (1 << 30), 2 << 30, n_bytes)
        ]

    async def test_neighbours_join_across_batches(self) -> None:
        """Contiguous memory is one run, and a hole one hole, in however many steps it was read."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        for page in range(20 * 512):
            builder.map(DIRECT + (page << 12), page << 12, 12)
        for table in range(30, 50):
            builder.map(DIRECT + (table << 21) + 4096, 4096, 12)
            builder.clear([0x111, 0, table, 1])

        runs = await runs_of(FOUR_LEVELS, tables_of(builder), Window(DIRECT, DIRECT + (1 << 30)))

        assert runs == [
            PhysRun(DIRECT, 0, 20 << 21),
            PhysRun(DIRECT + (20 << 21), None, (1 << 30) - (20 << 21) + 1),
        ]

    async def test_lost_table_where_zero_means_page_0(self) -> None:
        """A table that can't be read is a hole, even if an entry of zero would be valid."""
        builder = PageTableBuilder(S390X_3, ROOT)
        builder.map(0x5000, 0x5000, 12)
        del builder.pages[max(builder.pages)]

        runs = await runs_of(S390X_3, tables_of(builder), Window(0, 0xFFFF))

        assert runs == [PhysRun(0, None, 0x10000)]

    async def test_one_table_page_a_level(self) -> None:
        """1 GiB in 2 MiB leaves is read by three table pages, however many leaves there are."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        for leaf in range(512):
            builder.map(DIRECT + (leaf << 21), (leaf * 3) << 21, 21)
        pages = DictPages(builder.pages, page_size=4096)

        runs = await runs_of(
            FOUR_LEVELS, TableReader(pages, "<"), Window(DIRECT, DIRECT + (1 << 30) - 1)
        )

        assert len(runs) == 512
        assert sum(len(request) for request in pages.requests) == 3


class TestHostile:
    async def test_endless_tables_are_read_bit_by_bit(self) -> None:
        """A table of tables of itself, 2**36 pages, gives its first runs without reading on."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        for index in range(512):
            builder.put([index], table_entry(FOUR_LEVELS.levels[0], ROOT))
        pages = DictPages(builder.pages, page_size=4096)
        found = []

        async for run in iter_runs(FOUR_LEVELS, ROOT, TableReader(pages, "<"), WHOLE):
            found.append(run)
            if len(found) == 1000:
                break

        assert found[1] == PhysRun(0x1000, ROOT, 4096)
        assert len(pages.requests) < 10

    async def test_too_many_tables(self) -> None:
        """A range that is mapped by endless empty tables is given up."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        loop = table_entry(FOUR_LEVELS.levels[0], ROOT)
        for index in range(64):
            builder.put([index], loop)
        tables = tables_of(builder)
        started = time.monotonic()

        with pytest.raises(FormatError, match="tables of a range"):
            async for _ in iter_runs(FOUR_LEVELS, ROOT, tables, WHOLE, max_tables=1000):
                pass

        assert time.monotonic() - started < 5

    @given(seed=st.integers(0, 2**32), n_pages=st.integers(1, 5))
    @settings(max_examples=40, deadline=None)
    def test_garbage(self, seed: int, n_pages: int) -> None:
        """On random tables that point at each other, runs agree with a walk of each page."""
        rng = np.random.default_rng(seed)
        words = rng.integers(0, 1 << 64, (n_pages, 512), dtype=np.uint64)
        targets = rng.integers(0, n_pages + 1, (n_pages, 512), dtype=np.uint64) << np.uint64(12)
        words = (words & np.uint64(0xFFF0000000000FFF)) | targets | np.uint64(1)
        pages = {pfn: bytearray(row.tobytes()) for pfn, row in enumerate(words)}
        tables = TableReader(DictPages(pages, page_size=4096), "<")
        first = int(rng.integers(0, 1 << 47)) & ~0xFFF
        window = Window(first, first + (700 << 12) - 1)
        asked = np.arange(first, window.last, 4096, dtype=np.uint64)

        runs = anyio.run(runs_of, FOUR_LEVELS, tables, window, 0)
        walked = anyio.run(walk, FOUR_LEVELS, 0, tables, asked)

        check_shape(runs, window)
        seen = {
            at: None if run.paddr is None else run.paddr + at - run.vaddr
            for run in runs
            for at in range(run.vaddr, run.vaddr + run.n_bytes, 4096)
        }
        assert seen == {
            int(at): int(paddr) if mapped else None
            for at, paddr, mapped in zip(asked, walked.paddrs, walked.mapped, strict=True)
        }


class TestWindow:
    @pytest.mark.parametrize(
        ("vaddr", "n_bytes", "expected"),
        [
            (0x1000, 0x10, Window(0x1000, 0x100F)),
            ((1 << 64) - 16, 4096, Window((1 << 64) - 16, (1 << 64) - 1)),
            (0x1000, 0, None),
            (0x1000, -1, None),
            (-1, 16, None),
            (1 << 64, 16, None),
        ],
    )
    def test_cut_at_the_end(self, vaddr: int, n_bytes: int, expected: Window | None) -> None:
        """A range past the last address is cut; what is no range is None."""
        assert window_of(vaddr, n_bytes) == expected

    async def test_non_canonical_addresses_are_holes(self) -> None:
        """A window over the hole in the middle has a hole there, and memory around it."""
        builder = PageTableBuilder(FOUR_LEVELS, ROOT)
        builder.map((1 << 47) - 4096, 0x5000, 12)
        builder.map((1 << 64) - (1 << 47), 0x6000, 12)

        runs = await runs_of(
            FOUR_LEVELS, tables_of(builder), Window((1 << 47) - 4096, (1 << 64) - (1 << 47) + 4095)
        )

        assert [run.paddr for run in runs] == [0x5000, None, 0x6000]
        assert addresses(runs[1].vaddr)[0] == 1 << 47
