"""Runs hide what is inside them, and reach over the ends of windows."""

from __future__ import annotations

import numpy as np

from pipeline.memory.addresses import BoolArray
from stages.filter.classify import PageCodes
from stages.filter.levels import PageClass
from stages.filter.runs import NO_CARRY, Carry, resolve_runs

FREE, USER, CACHE = PageClass.FREE, PageClass.USER, PageClass.CACHE


def codes_of(n_pages: int, runs: dict[int, tuple[PageClass, int]]) -> PageCodes:
    """Codes in which page `index` has a class, and starts a run of 2^order pages."""
    codes = np.zeros(n_pages, dtype=np.uint8)
    orders = np.zeros(n_pages, dtype=np.uint8)
    for index, (page_class, order) in runs.items():
        codes[index], orders[index] = page_class, order
    return PageCodes(codes, orders)


def resolve(
    n_pages: int,
    runs: dict[int, tuple[PageClass, int]],
    *,
    first_pfn: int = 0,
    absent: tuple[int, ...] = (),
    carry: Carry = NO_CARRY,
) -> tuple[list[int], Carry]:
    present: BoolArray = np.ones(n_pages, dtype=np.bool_)
    present[list(absent)] = False
    classes, carry = resolve_runs(codes_of(n_pages, runs), first_pfn, present, carry)
    return classes.tolist(), carry


class TestInsideOneWindow:
    def test_without_runs_codes_stand(self) -> None:
        """Single pages are what they say."""
        assert resolve(4, {1: (USER, 0), 3: (CACHE, 0)})[0] == [0, USER, 0, CACHE]

    def test_run_hides_single_pages(self) -> None:
        """Stale pages in a free block do not count under their old class."""
        classes, carry = resolve(8, {0: (FREE, 2), 1: (USER, 0), 3: (CACHE, 0), 4: (USER, 0)})

        assert classes == [FREE] * 4 + [USER, 0, 0, 0]
        assert carry == NO_CARRY

    def test_run_hides_runs_inside(self) -> None:
        """Old buddy orders stay in the private words of merged blocks."""
        classes, _ = resolve(8, {0: (FREE, 3), 2: (FREE, 1), 4: (USER, 2)})

        assert classes == [FREE] * 8

    def test_runs_one_after_the_other(self) -> None:
        """Neighbours do not hide each other."""
        classes, _ = resolve(8, {0: (FREE, 1), 2: (USER, 1), 4: (FREE, 2)})

        assert classes == [FREE] * 2 + [USER] * 2 + [FREE] * 4

    def test_nested_twice(self) -> None:
        """What a hidden run would hide is decided by the outer run alone."""
        classes, _ = resolve(16, {0: (FREE, 3), 4: (USER, 2), 6: (FREE, 1), 8: (CACHE, 0)})

        assert classes == [FREE] * 8 + [CACHE] + [0] * 7

    def test_unaligned_buddy_blocks_are_believed_in_order(self) -> None:
        """A corrupt order gives overlapping blocks: the first one met wins, as page by page."""
        classes, _ = resolve(12, {1: (FREE, 2), 4: (FREE, 2), 5: (FREE, 1), 8: (USER, 0)})

        assert classes == [0] + [FREE] * 6 + [0, USER, 0, 0, 0]

    def test_unaligned_compound_page_is_one_page(self) -> None:
        """Its order cannot be right."""
        assert resolve(8, {2: (USER, 2)})[0] == [0, 0, USER, 0, 0, 0, 0, 0]

    def test_alignment_counts_from_pfn_zero(self) -> None:
        """Not from the start of the window."""
        assert resolve(8, {2: (USER, 2)}, first_pfn=2)[0] == [0, 0] + [USER] * 4 + [0, 0]


class TestAbsentPages:
    def test_absent_head_starts_nothing(self) -> None:
        """Its struct page is not looked at, so the pages behind it speak for themselves."""
        classes, _ = resolve(4, {0: (FREE, 2), 1: (USER, 0)}, absent=(0,))

        assert classes == [0, USER, 0, 0]

    def test_absent_pages_inside_a_run_are_not_counted(self) -> None:
        """There is nothing to leave out."""
        classes, _ = resolve(4, {0: (FREE, 2)}, absent=(1, 2))

        assert classes == [FREE, 0, 0, FREE]


class TestAcrossWindows:
    def test_run_beyond_the_end_is_carried(self) -> None:
        """A gigantic page covers many windows."""
        classes, carry = resolve(8, {0: (USER, 5)}, first_pfn=64)

        assert classes == [USER] * 8
        assert carry == Carry(96, USER)

    def test_carry_covers_the_next_window(self) -> None:
        """And what lies in it is not looked at."""
        classes, carry = resolve(
            8, {0: (FREE, 3), 5: (CACHE, 0)}, first_pfn=72, carry=Carry(96, USER)
        )

        assert classes == [USER] * 8
        assert carry == Carry(96, USER)

    def test_carry_ends_inside_a_window(self) -> None:
        """Pages after it count again."""
        classes, carry = resolve(
            8, {1: (FREE, 0), 5: (CACHE, 0)}, first_pfn=72, absent=(2,), carry=Carry(76, USER)
        )

        assert classes == [USER, USER, 0, USER, 0, CACHE, 0, 0]
        assert carry.stop == 76

    def test_carry_of_the_past_does_nothing(self) -> None:
        """Its end lies before the window."""
        assert resolve(4, {2: (USER, 0)}, first_pfn=72, carry=Carry(70, FREE))[0] == [0, 0, USER, 0]
