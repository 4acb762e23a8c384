"""Segments of an ELF dump: they cover every load, and point to every page that was written."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.formats.elf import PT_LOAD, ProgramHeader
from stages.writer.elf_segments import Load, Run, SegmentBuilder, mark_pair, split_loads

PAGE = 4096
MANY = 1 << 40


def pages(start: int, stop: int, off: int) -> Run:
    return Run(start * PAGE, stop * PAGE, off)


def load(start: int, stop: int, vaddr: int = 0xFFFF_8880_0000_0000) -> Load:
    return Load(start * PAGE, stop * PAGE, vaddr + start * PAGE)


def build(loads: list[Load], runs: list[Run], most_bytes: int = MANY) -> list[ProgramHeader]:
    builder = SegmentBuilder(loads, most_bytes)
    headers = [header for run in runs for header in builder.add(run)]
    end = max((run.off + run.stop - run.start for run in runs), default=0x1000)
    return headers + builder.finish(end)


def shown(headers: list[ProgramHeader]) -> list[tuple[int, int, int, int]]:
    """(first page, offset, pages in the file, pages in memory)."""
    return [
        (one.p_paddr // PAGE, one.p_offset, one.p_filesz // PAGE, one.p_memsz // PAGE)
        for one in headers
    ]


class TestOneLoad:
    def test_everything(self) -> None:
        """A load that is there as a whole is one segment like it."""
        (header,) = build([load(10, 20)], [pages(10, 20, 0x500)])

        assert header == ProgramHeader(
            PT_LOAD, 7, 0x500, 0xFFFF_8880_0000_A000, 0xA000, 0xA000, 0xA000, 0
        )

    def test_gap_inside(self) -> None:
        """What is left out is the tail of the segment before it; the next goes on behind it."""
        headers = build([load(10, 20)], [pages(10, 12, 0x500), pages(17, 20, 0x2500)])

        assert shown(headers) == [(10, 0x500, 2, 7), (17, 0x2500, 3, 3)]
        assert [one.p_vaddr - one.p_paddr for one in headers] == [0xFFFF_8880_0000_0000] * 2

    def test_gaps_at_both_ends(self) -> None:
        """A gap at the start is a segment without bytes, whose place in the file is no lie."""
        headers = build([load(10, 20)], [pages(12, 15, 0x500)])

        assert shown(headers) == [(10, 0x500, 0, 2), (12, 0x500, 3, 8)]

    def test_nothing(self) -> None:
        """A load without any page that was kept is described nevertheless."""
        assert shown(build([load(10, 20)], [])) == [(10, 0x1000, 0, 10)]

    def test_neighbours_in_memory_and_file_are_one(self) -> None:
        """Runs come a batch at a time; segments do not show it."""
        runs = [pages(10, 12, 0x500), pages(12, 14, 0x2500), pages(14, 20, 0x4500)]

        assert shown(build([load(10, 20)], runs)) == [(10, 0x500, 10, 10)]

    def test_neighbours_in_memory_only_are_two(self) -> None:
        """Pages of one batch and zeros of the next lie elsewhere."""
        runs = [pages(10, 12, 0x500), pages(12, 20, 0x9500)]

        assert shown(build([load(10, 20)], runs)) == [(10, 0x500, 2, 2), (12, 0x9500, 8, 8)]

    def test_long_runs_are_cut(self) -> None:
        """So that headers come while the run goes on."""
        builder = SegmentBuilder([load(0, 100)], 4 * PAGE)

        done = [len(builder.add(pages(at, at + 2, 0x500 + at * PAGE))) for at in range(0, 20, 2)]

        assert done == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0]

    def test_parts_of_pages(self) -> None:
        """A load that starts and ends in mid-page stays so; its bytes are those of the page."""
        odd = Load(10 * PAGE + 0x100, 11 * PAGE + 0x80, 0x7000_0100)

        (header,) = build([odd], [pages(10, 12, 0x5000)])

        assert (header.p_paddr, header.p_vaddr, header.p_offset) == (
            10 * PAGE + 0x100, 0x7000_0100, 0x5100,
        )  # fmt: skip
        assert header.p_filesz == header.p_memsz == PAGE - 0x80


class TestSeveralLoads:
    def test_run_across_two(self) -> None:
        """Two loads that touch are two segments, of one run."""
        headers = build([load(10, 15), load(15, 20)], [pages(10, 20, 0x500)])

        assert shown(headers) == [(10, 0x500, 5, 5), (15, 0x500 + 5 * PAGE, 5, 5)]

    def test_order_of_the_source_does_not_matter(self) -> None:
        """Segments ascend, as the pages come."""
        headers = build([load(30, 40), load(10, 20)], [pages(10, 20, 0), pages(35, 40, 0xA000)])

        assert shown(headers) == [(10, 0, 10, 10), (30, 0xA000, 0, 5), (35, 0xA000, 5, 5)]

    def test_overlap_is_written_once(self) -> None:
        """The kernel's text has a load of its own inside RAM: its segments share the bytes."""
        text = load(12, 16, vaddr=0xFFFF_FFFF_8000_0000)
        headers = build([text, load(10, 20)], [pages(10, 13, 0x500), pages(15, 20, 0x3500)])

        assert shown(headers) == [
            (10, 0x500, 3, 5), (15, 0x3500, 5, 5),
            (12, 0x500 + 2 * PAGE, 1, 3), (15, 0x3500, 1, 1),
        ]  # fmt: skip
        assert headers[2].p_vaddr == 0xFFFF_FFFF_8000_C000

    def test_split(self) -> None:
        """The larger of two that overlap is taken first."""
        small, large, apart = load(12, 16), load(10, 20), load(30, 40)

        assert split_loads([small, large, apart]) == ([large, apart], [small])


class TestPair:
    """Readers take tails for zeros unless a load goes on where a tail ends."""

    @pytest.mark.parametrize(
        ("runs", "has_pair"),
        [
            ([pages(10, 20, 0)], False),
            ([pages(10, 15, 0)], False),
            ([pages(15, 20, 0)], True),
            ([pages(10, 12, 0), pages(15, 20, 0x2000)], True),
        ],
    )
    def test_is_noticed(self, runs: list[Run], has_pair: bool) -> None:
        """A gap that something follows makes one."""
        builder = SegmentBuilder([load(10, 20), load(30, 40)], MANY)
        for run in [*runs, pages(30, 40, 0x10000)]:
            builder.add(run)
        builder.finish(0x20000)

        assert builder.has_pair == has_pair

    @pytest.mark.parametrize("n_pages", [1, 2, 5])
    def test_is_made(self, n_pages: int) -> None:
        """A tail, even of a single page, said again in two parts that touch."""
        (tail,) = build([load(10, 15 + n_pages)], [pages(10, 15, 0)])

        first, second = mark_pair(tail)

        assert first.p_filesz == second.p_filesz == 0
        assert first.p_paddr == tail.p_paddr + tail.p_filesz
        assert first.p_paddr + first.p_memsz == second.p_paddr
        assert second.p_paddr + second.p_memsz == tail.p_paddr + tail.p_memsz
        assert min(first.p_memsz, second.p_memsz) > 0
        assert second.p_vaddr - second.p_paddr == tail.p_vaddr - tail.p_paddr


LOADS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 30)).map(lambda one: load(one[0], sum(one))),
    min_size=1,
    max_size=6,
)


@given(loads=LOADS, kept=st.sets(st.integers(0, 90)), most=st.sampled_from([2, 5, 1000]))
def test_every_byte_of_every_load(loads: list[Load], kept: set[int], most: int) -> None:
    """Against a dictionary: each load is tiled, each page kept is found, no other has a place."""
    inside = sorted(pfn for pfn in kept if any(one.start <= pfn * PAGE < one.stop for one in loads))
    place = {pfn: 0x1000 + at * PAGE for at, pfn in enumerate(inside)}

    headers = build(loads, [pages(pfn, pfn + 1, place[pfn]) for pfn in inside], most * PAGE)

    for header in headers:
        assert 0 < header.p_memsz >= header.p_filesz
        for at in range(0, header.p_filesz, PAGE):
            assert place[(header.p_paddr + at) // PAGE] == header.p_offset + at
    by_page = [0] * 100
    for one in loads:
        for pfn in range(one.start // PAGE, one.stop // PAGE):
            by_page[pfn] += 1
    for pfn in range(100):
        covering = [h for h in headers if h.p_paddr <= pfn * PAGE < h.p_paddr + h.p_memsz]
        with_bytes = [h for h in covering if pfn * PAGE < h.p_paddr + h.p_filesz]
        assert len(covering) == by_page[pfn]
        assert len(with_bytes) == (by_page[pfn] if pfn in place else 0)
    assert all(h.p_filesz <= most * PAGE for h in headers)
    disjoint, _ = split_loads(loads)
    assert all(one.stop <= two.start for one, two in pairwise(disjoint))
