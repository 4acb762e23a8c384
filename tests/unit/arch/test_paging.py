"""Paging forms: what an entry means."""

from __future__ import annotations

import numpy as np
import pytest

from stages.arch.paging import ADDRESS_LIMIT, EntryKind, PagingForm
from stages.arch.x86_64 import FIVE_LEVELS, FOUR_LEVELS
from tests.support.pagetable_builder import absent_entry, leaf_entry, table_entry
from tests.unit.arch.other_forms import ARM64_16K_52, ARM64_64K_52, OTHER_FORMS, RISCV_SV39

ALL_FORMS = (FOUR_LEVELS, FIVE_LEVELS, *OTHER_FORMS)
by_name = pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)


def decode(form: PagingForm, depth: int, entry: int) -> tuple[EntryKind, int, int]:
    kinds, addrs, spans = form.decode(depth, np.array([entry], dtype=np.uint64))
    return EntryKind(int(kinds[0])), int(addrs[0]), int(spans[0])


class TestEveryForm:
    @by_name
    def test_levels_fit_together(self, form: PagingForm) -> None:
        """Each level's bits start where the next one's end, down to a page."""
        for upper, lower in zip(form.levels, form.levels[1:], strict=False):
            assert upper.shift == lower.shift + lower.bits
        assert form.levels[-1].shift == form.page_bits
        assert not form.levels[-1].table

    @by_name
    def test_windows_end_on_top_entries(self, form: PagingForm) -> None:
        """All addresses of one top table entry are canonical, or none: the walker relies on it."""
        span = 1 << form.levels[0].shift
        for window in form.windows:
            assert window.first % span == 0
            assert (window.last + 1) % span == 0

    @by_name
    def test_round_trip(self, form: PagingForm) -> None:
        """What an entry was made of comes back out of it."""
        for depth, level in enumerate(form.levels):
            assert decode(form, depth, absent_entry(level))[0] == EntryKind.ABSENT
            if level.table:
                assert decode(form, depth, table_entry(level, 0x7FFF0000)) == (
                    EntryKind.TABLE,
                    0x7FFF0000,
                    0,
                )
            for leaf in level.leaves:
                paddr = 5 << leaf.span_bits
                assert decode(form, depth, leaf_entry(level, leaf, paddr)) == (
                    EntryKind.LEAF,
                    paddr,
                    leaf.span_bits,
                )


class TestX86:
    @pytest.mark.parametrize(
        ("depth", "entry", "expected"),
        [
            (0, 0x1A018067, (EntryKind.TABLE, 0x1A018000, 0)),
            (0, 0x1A018066, (EntryKind.ABSENT, 0, 0)),
            (0, 0x1A0180E7, (EntryKind.INVALID, 0, 0)),
            (1, 0x80000000400001E3, (EntryKind.LEAF, 0x40000000, 30)),
            (1, 0x80000000400011E3, (EntryKind.LEAF, 0x40000000, 30)),
            (1, 0x80000000402001E3, (EntryKind.INVALID, 0, 0)),
            (2, 0x80000001000001E3, (EntryKind.LEAF, 0x100000000, 21)),
            (2, 0x80000001000021E3, (EntryKind.INVALID, 0, 0)),
            (3, 0xFFFFFFFFFFFFFFFF, (EntryKind.LEAF, 0xFFFFFFFFFF000, 12)),
        ],
    )
    def test_entries(self, depth: int, entry: int, expected: tuple[EntryKind, int, int]) -> None:
        """Present, PS and reserved bits decide; flags, NX and PAT are no address bits."""
        assert decode(FOUR_LEVELS, depth, entry) == expected

    def test_encryption_bit(self) -> None:
        """An ignored bit is neither address nor reserved, on any level."""
        form = FOUR_LEVELS.ignoring(1 << 47)

        assert decode(form, 0, 0x800000001067) == (EntryKind.TABLE, 0x1000, 0)
        assert decode(form, 2, 0x8000002001E3) == (EntryKind.LEAF, 0x200000, 21)
        assert FOUR_LEVELS.ignoring(0) is FOUR_LEVELS


class TestOthers:
    """Entries as the architectures' manuals describe them, not as our builder makes them."""

    def test_arm64_lpa_address(self) -> None:
        """With 64 KiB pages, entry bits 15:12 are address bits 51:48."""
        assert decode(ARM64_64K_52, 2, 0x1234_5678_A003) == (EntryKind.LEAF, 0xA1234_5678_0000, 16)

    def test_arm64_lpa2_address(self) -> None:
        """With 16 KiB pages and LPA2, entry bits 9:8 are address bits 51:50."""
        assert decode(ARM64_16K_52, 3, 0x1_0000_0000_4303) == (
            EntryKind.LEAF,
            0xD_0000_0000_4000,
            14,
        )

    def test_arm64_block(self) -> None:
        """Bit 1 clear makes a block, on a level that may have one."""
        assert decode(ARM64_16K_52, 2, 0x0000_0000_0200_0701)[0] == EntryKind.LEAF
        assert decode(ARM64_16K_52, 3, 0x0000_0000_0200_0701)[0] == EntryKind.INVALID

    def test_riscv_leaf_by_permissions(self) -> None:
        """R, W or X makes a leaf on any level; the page number starts at bit 10."""
        assert decode(RISCV_SV39, 0, 0x80000 << 10 | 0xCF) == (EntryKind.LEAF, 0x80000000, 30)
        assert decode(RISCV_SV39, 0, 0x80000 << 10 | 0x01) == (EntryKind.TABLE, 0x80000000, 0)

    def test_riscv_napot(self) -> None:
        """Bit 63 and a page number that ends in 0b1000 make a leaf of 64 KiB."""
        entry = 1 << 63 | (0x80010 | 0x8) << 10 | 0xCF

        assert decode(RISCV_SV39, 2, entry) == (EntryKind.LEAF, 0x80010000, 16)


class TestCanonical:
    def test_x86_halves(self) -> None:
        """Addresses are canonical in both halves, up to the last one of each."""
        half = 1 << 47
        asked = np.array(
            [0, half - 1, half, ADDRESS_LIMIT - half - 1, ADDRESS_LIMIT - half, ADDRESS_LIMIT - 1],
            dtype=np.uint64,
        )

        assert FOUR_LEVELS.canonical(asked).tolist() == [True, True, False, False, True, True]
