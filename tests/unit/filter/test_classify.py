"""Every rule of the filter, for every generation of struct page."""

from __future__ import annotations

import numpy as np
import pytest

from stages.filter.classify import page_codes
from tests.unit.filter.struct_rows import GENERATIONS, StructRows, layout_of

ANON = 0xFFFF888000000001
KSM = 0xFFFF888000000003
MOVABLE = 0xFFFF888000000002
FILE = 0xFFFF888000000000
LEVELS = range(32)


def levels_with(*bits: int) -> set[int]:
    """Levels that have any of `bits`."""
    return {level for level in LEVELS if any(level & bit for bit in bits)}


def dropped_at(rows: StructRows, label: str) -> set[int]:
    """Levels at which page 0 is left out, always under `label`."""
    found = {level: rows.labels(level)[0] for level in LEVELS}
    assert set(found.values()) <= {"kept", label}
    return {level for level, seen in found.items() if seen == label}


@pytest.mark.parametrize("generation", GENERATIONS)
class TestSinglePages:
    def test_lru_page_is_cache(self, generation: str) -> None:
        """PG_lru without PG_private goes at level 2, and at level 4 too, always as cache."""
        rows = StructRows(generation, 4)
        rows.put(0, flags=1 << rows.kernel.bits.lru, mapping=FILE)

        assert levels_with(2, 4) == dropped_at(rows, "cache")

    def test_private_cache_needs_level_four(self, generation: str) -> None:
        """PG_lru with PG_private stays at level 2."""
        rows = StructRows(generation, 4)
        bits = rows.kernel.bits
        rows.put(0, flags=1 << bits.lru | 1 << bits.private, mapping=FILE)

        assert levels_with(4) == dropped_at(rows, "cache_private")

    def test_swapcache_counts_with_swapbacked_only(self, generation: str) -> None:
        """PG_swapcache alone is somebody else's PG_owner_priv_1; with PG_swapbacked it is cache."""
        rows = StructRows(generation, 4)
        bits = rows.kernel.bits
        rows.put(0, flags=1 << bits.swapcache | 1 << bits.swapbacked, mapping=FILE)
        alone = StructRows(generation, 4).put(0, flags=1 << bits.swapcache, mapping=FILE)
        other = StructRows(generation, 4).put(0, flags=1 << bits.swapbacked, mapping=FILE)

        assert levels_with(2, 4) == dropped_at(rows, "cache")
        assert set() == dropped_at(alone, "cache")
        assert set() == dropped_at(other, "cache")

    @pytest.mark.parametrize("mapping", [ANON, KSM])
    def test_anonymous_and_ksm_are_user(self, generation: str, mapping: int) -> None:
        """Bit 0 of mapping makes a user page, on the LRU and with PG_private or without."""
        rows = StructRows(generation, 4)
        bits = rows.kernel.bits
        rows.put(0, flags=1 << bits.lru | 1 << bits.private, mapping=mapping, mapcount=0)

        assert levels_with(8) == dropped_at(rows, "user")

    def test_movable_driver_page_is_kept(self, generation: str) -> None:
        """Bit 1 of mapping alone does not make a user page."""
        rows = StructRows(generation, 4).put(0, mapping=MOVABLE)

        assert set() == dropped_at(rows, "user")

    def test_waiters_do_not_make_a_slab_page(self, generation: str) -> None:
        """Bit 7 of flags, PG_slab of old kernels, is no reason to keep an anonymous page."""
        rows = StructRows(generation, 4)
        rows.put(0, flags=1 << rows.kernel.bits.waiters, mapping=ANON)

        assert levels_with(8) == dropped_at(rows, "user")

    def test_slab_page_that_looks_anonymous_is_kept(self, generation: str) -> None:
        """The mapping word of a slab page is something else."""
        rows = StructRows(generation, 4)
        if rows.kernel.bits.slab is not None:
            rows.put(0, flags=1 << rows.kernel.bits.slab, mapping=ANON)
        else:
            rows.put(0, mapping=ANON, mapcount=rows.kernel.types.slab)

        assert set() == dropped_at(rows, "user")

    def test_hwpoison_goes_at_every_level(self, generation: str) -> None:
        """Level 0 too."""
        rows = StructRows(generation, 4).put(
            0, flags=1 << StructRows(generation, 1).kernel.bits.hwpoison
        )

        assert set(LEVELS) == dropped_at(rows, "hwpoison")

    def test_offline_goes_at_every_level(self, generation: str) -> None:
        """Memory taken by a balloon is not ours to read."""
        rows = StructRows(generation, 4)
        rows.put(0, mapcount=rows.kernel.types.offline)

        assert set(LEVELS) == dropped_at(rows, "offline")

    def test_offline_with_owner_bits_is_kept(self, generation: str) -> None:
        """The whole word is compared, as makedumpfile does, though the top byte would be better."""
        rows = StructRows(generation, 4)
        rows.put(0, mapcount=rows.kernel.types.offline ^ 5)

        assert set() == dropped_at(rows, "offline")

    @pytest.mark.parametrize("name", ["table", "guard", "large_kmalloc"])
    def test_other_page_types_are_kept(self, generation: str, name: str) -> None:
        """Page tables and the like have no rule."""
        rows = StructRows(generation, 4)
        value = getattr(rows.kernel.types, name)
        rows.put(0, mapcount=0x12345678 if value is None else value)

        assert {"kept"} == {rows.labels(level)[0] for level in LEVELS}

    def test_user_wins_over_hwpoison(self, generation: str) -> None:
        """A poisoned anonymous page counts as user where user pages go."""
        rows = StructRows(generation, 4)
        rows.put(0, flags=1 << rows.kernel.bits.hwpoison, mapping=ANON)

        assert rows.labels(0)[0] == "hwpoison"
        assert rows.labels(8)[0] == "user"

    def test_tail_is_never_looked_at(self, generation: str) -> None:
        """A tail whose words look anonymous, cached, free and poisoned stays with its head."""
        rows = StructRows(generation, 4)
        bits = rows.kernel.bits
        rows.put(
            1,
            compound=0xFFFF880000000001,
            flags=1 << bits.lru | 1 << bits.hwpoison,
            mapping=ANON,
            mapcount=rows.kernel.types.buddy,
        )

        assert {"kept"} == {rows.labels(level)[1] for level in LEVELS}


@pytest.mark.parametrize("generation", GENERATIONS)
class TestRunsOfPages:
    def test_buddy_block_goes_whole(self, generation: str) -> None:
        """The head's private word is the order, whatever the other pages still look like."""
        rows = StructRows(generation, 16)
        rows.put(8, mapcount=rows.kernel.types.buddy, private=2)
        rows.put(10, mapping=ANON)

        assert rows.labels(16) == ["kept"] * 8 + ["free"] * 4 + ["kept"] * 4
        assert rows.labels(0) == ["kept"] * 16
        assert rows.labels(8).index("user") == 10

    @pytest.mark.parametrize("order", [11, 64, (1 << 64) - 1])
    def test_buddy_with_an_absurd_order_is_kept(self, generation: str, order: int) -> None:
        """And no other rule is tried on it, as makedumpfile does; only level 16 looks."""
        rows = StructRows(generation, 16)
        rows.put(0, mapcount=rows.kernel.types.buddy, private=order, mapping=ANON)

        assert rows.labels(31) == ["kept"] * 16
        assert rows.labels(8)[0] == "user"
        assert page_codes(rows.raw, 16, 0, rows.layout, 16).n_bad_orders == 1

    def test_slab_flag_makes_no_buddy(self, generation: str) -> None:
        """A page that says both is not free."""
        rows = StructRows(generation, 4)
        slab = rows.kernel.bits.slab
        rows.put(0, mapcount=rows.kernel.types.buddy, flags=0 if slab is None else 1 << slab)

        assert ("kept" if slab is not None else "free") == rows.labels(16)[0]

    @pytest.mark.parametrize(("level", "label"), [(8, "user"), (31, "user")])
    def test_hugetlb_goes_whole(self, generation: str, level: int, label: str) -> None:
        """A hugetlb page is told by its own mark: it is on no LRU and not anonymous."""
        rows = StructRows(generation, 1024).head(512, 9, hugetlb=True)

        assert ["kept"] * 512 + [label] * 512 == rows.labels(level)
        assert rows.labels(level & ~8) == ["kept"] * 1024

    def test_plain_compound_page_is_kept(self, generation: str) -> None:
        """A compound page without any mark is the kernel's."""
        rows = StructRows(generation, 16).head(4, 2)

        assert rows.labels(31) == ["kept"] * 16

    def test_large_folio_goes_whole(self, generation: str) -> None:
        """The head's PG_lru decides for all pages of the folio."""
        rows = StructRows(generation, 16)
        rows.head(4, 2, flags=1 << rows.kernel.bits.lru, mapping=FILE)

        assert rows.labels(2) == ["kept"] * 4 + ["cache"] * 4 + ["kept"] * 8

    def test_unaligned_compound_loses_its_head_only(self, generation: str) -> None:
        """A compound page lies at a multiple of its size, or the order is wrong."""
        rows = StructRows(generation, 16).head(2, 2, mapping=ANON)

        assert rows.labels(8) == ["kept"] * 2 + ["user"] + ["kept"] * 13

    def test_absurd_compound_order_loses_its_head_only(self, generation: str) -> None:
        """Pfn 0 is aligned to everything, so the order itself must be checked."""
        rows = StructRows(generation, 16).head(0, 4, mapping=ANON)
        rows.rows[1, 0 if rows.kernel.order_in_flags else 17] = 63

        assert rows.labels(8) == ["user"] + ["kept"] * 15

    def test_head_at_the_end_of_a_batch_is_no_head(self, generation: str) -> None:
        """Struct pages come 512 at a time, and page1 of the last is never read."""
        rows = StructRows(generation, 1024).head(511, 1, hugetlb=True)

        assert rows.labels(8)[510:514] == ["kept"] * 4


class TestUnaccepted:
    def test_run_is_the_largest_block(self) -> None:
        """Unaccepted memory has no order field."""
        rows = StructRows("7.1", 2048)
        rows.put(1024, mapcount=rows.kernel.types.unaccepted)

        assert rows.labels(16) == ["kept"] * 1024 + ["free"] * 1024
        assert rows.labels(15) == ["kept"] * 2048


class TestWhatCannotBeTold:
    def test_without_any_slab_key_anonymous_pages_are_kept(self) -> None:
        """A slab page would look the same."""
        rows = StructRows("6.12", 4).put(0, mapping=ANON)
        layout = layout_of("6.12", NUMBER_PAGE_SLAB_MAPCOUNT_VALUE=None)

        assert rows.labels(31, layout)[0] == "kept"
        assert any("user" in text for text in layout.unknown)

    def test_without_the_compound_word_only_types_count(self) -> None:
        """Any page could be a tail then."""
        rows = StructRows("6.1", 8).put(0, mapping=ANON).put(1, flags=1 << 4)
        rows.put(2, mapcount=rows.kernel.types.buddy)
        layout = layout_of("6.1", OFFSET_page__compound_head=None)

        assert rows.labels(31, layout)[:3] == ["kept", "kept", "free"]

    def test_without_an_order_key_a_compound_page_loses_its_head(self) -> None:
        """Its length is not known, and what is not known is kept."""
        rows = StructRows("6.1", 8).head(0, 2, mapping=ANON)
        layout = layout_of("6.1", OFFSET_page__compound_order=None)

        assert rows.labels(8, layout) == ["user"] + ["kept"] * 7

    def test_without_swapbacked_the_swapcache_bit_stands_alone(self) -> None:
        """As before v4.10."""
        rows = StructRows("6.1", 2).put(0, flags=1 << 10, mapping=FILE)

        assert rows.labels(2, layout_of("6.1", NUMBER_PG_swapbacked=None))[0] == "cache"

    def test_without_private_nothing_is_cache(self) -> None:
        """Cache with private data could not be told from cache without."""
        rows = StructRows("6.1", 2).put(0, flags=1 << 4, mapping=FILE)

        assert rows.labels(6, layout_of("6.1", NUMBER_PG_private=None))[0] == "kept"


class TestShapes:
    def test_short_buffer_is_refused(self) -> None:
        """A view past the end of a buffer would read what is not ours."""
        layout = layout_of("6.1")
        with pytest.raises(ValueError, match="do not hold 3 struct pages"):
            page_codes(np.zeros(128, dtype=np.uint8), 3, 0, layout, 31)

    def test_flag_bits_above_32_are_seen(self) -> None:
        """Most kernels fit 32 bits, which is faster; some do not."""
        layout = layout_of("6.1", NUMBER_PG_hwpoison="40")
        rows = StructRows("6.1", 2).put(1, flags=1 << 40)

        assert rows.labels(0, layout) == ["kept", "hwpoison"]

    @pytest.mark.parametrize("size", [56, 80, 128])
    def test_other_struct_sizes(self, size: int) -> None:
        """Debug options make struct page larger, and some kernels pack it to 56 bytes."""
        layout = layout_of("6.1", SIZE_page=str(size))
        raw = np.zeros((3, size), dtype=np.uint8)
        raw[:, 48:52] = 0xFF
        raw[1, 24] = 1

        codes = page_codes(raw.reshape(-1), 3, 0, layout, 8)

        assert codes.codes.tolist() == [0, 3, 0]
