"""What VMCOREINFO says about struct page, and what is believed of it."""

from __future__ import annotations

import pytest

from pipeline.errors import FormatError, MissingInfoError
from stages.filter.page_layout import PageLayout
from stages.formats.vmcoreinfo import VmcoreInfo
from tests.unit.filter.struct_rows import GENERATIONS, layout_of, vmcoreinfo_of


class TestGenerations:
    @pytest.mark.parametrize("generation", GENERATIONS)
    def test_everything_is_known(self, generation: str) -> None:
        """A whole VMCOREINFO of any supported generation leaves no class in doubt."""
        layout = layout_of(generation)

        assert layout.unknown == ()
        assert layout.knows_buddy
        assert layout.knows_slab
        assert layout.max_block_pages == 1024

    def test_types_are_words_of_32_bits(self) -> None:
        """They are printed as signed decimals, and -129 is 0xffffff7f."""
        assert layout_of("5.10").types.buddy == 0xFFFFFF7F
        assert layout_of("5.10").types.offline == 0xFFFFFEFF
        assert layout_of("6.12").types.buddy == 0xF0000000

    @pytest.mark.parametrize("text", ["0xffffff7f", "ffffff7f", "4294967167"])
    def test_types_may_be_hexadecimal(self, text: str) -> None:
        """Some releases print them so."""
        layout = layout_of("6.1", NUMBER_PAGE_BUDDY_MAPCOUNT_VALUE=text)

        assert layout.types.buddy == 0xFFFFFF7F

    @pytest.mark.parametrize("text", ["-1", "0xffffffff"])
    def test_no_type_is_not_a_type(self, text: str) -> None:
        """Nearly every page has -1 there: as a type it would take all of memory out of the dump."""
        types = layout_of(
            "6.12",
            NUMBER_PAGE_OFFLINE_MAPCOUNT_VALUE=text,
            NUMBER_PAGE_BUDDY_MAPCOUNT_VALUE=text,
        ).types

        assert (types.offline, types.buddy) == (None, None)
        assert types.slab is not None

    def test_newest_compound_word_is_taken(self) -> None:
        """compound_info since v7.1, compound_head before."""
        both = layout_of("7.1", OFFSET_page__compound_head="16")

        assert both.compound_off == 8
        assert layout_of("6.1").compound_off == 8

    def test_order_byte_follows_the_byte_order(self) -> None:
        """The order is in the low byte of page1.flags, wherever that is in memory."""
        info = VmcoreInfo.parse(vmcoreinfo_of("6.12"))

        assert PageLayout.from_vmcoreinfo(info, byte_order="<").compound.order_off == 0
        assert PageLayout.from_vmcoreinfo(info, byte_order=">").compound.order_off == 7


class TestCompoundRule:
    def test_type_of_hugetlb_comes_first(self) -> None:
        """v6.9 and later say it by page type, whatever older keys are there too."""
        layout = layout_of(
            "6.12",
            NUMBER_PG_hugetlb="8",
            NUMBER_HUGETLB_PAGE_DTOR="2",
            OFFSET_page__compound_order="17",
        )

        assert layout.types.hugetlb == 0xF4000000
        assert (layout.compound.order_off, layout.compound.hugetlb_flag) == (0, 0)

    def test_flag_of_page1_comes_second(self) -> None:
        """v6.6 to v6.8."""
        layout = layout_of("6.6", OFFSET_page__compound_order="17")

        assert (layout.compound.order_off, layout.compound.hugetlb_flag) == (0, 1 << 8)

    def test_folio_members_are_counted_from_the_head(self) -> None:
        """v6.3 to v6.5 give offsets in struct folio, whose second page starts after the first."""
        layout = layout_of("5.10", OFFSET_folio___folio_order="81", OFFSET_folio___folio_dtor="80")

        assert (layout.compound.order_off, layout.compound.dtor_off) == (17, 16)

    @pytest.mark.parametrize("offset", ["63", "128", "-1"])
    def test_folio_members_outside_page1_are_refused(self, offset: str) -> None:
        """They would be read from a third struct page, or from the head."""
        with pytest.raises(FormatError, match=r"folio\._folio_order"):
            layout_of("5.10", OFFSET_folio___folio_order=offset)

    def test_hugetlb_without_its_destructor_number_is_unknown(self) -> None:
        """The order is still known."""
        layout = layout_of("5.10", NUMBER_HUGETLB_PAGE_DTOR=None)

        assert layout.compound.order_off == 17
        assert any("hugetlb" in text for text in layout.unknown)


class TestMissingKeys:
    @pytest.mark.parametrize("key", ["SIZE_page", "OFFSET_page__flags", "OFFSET_page__mapping"])
    def test_indispensable_keys(self, key: str) -> None:
        """Nothing works without them."""
        with pytest.raises(MissingInfoError, match="page"):
            layout_of("6.1", **{key: None})

    @pytest.mark.parametrize(
        ("key", "what"),
        [
            ("OFFSET_page__compound_head", "compound_info"),
            ("OFFSET_page___mapcount", "_mapcount"),
            ("OFFSET_page__private", "page.private"),
            ("NUMBER_PAGE_BUDDY_MAPCOUNT_VALUE", "BUDDY"),
            ("LENGTH_zone__free_area", "free_area"),
            ("NUMBER_PG_slab", "PG_slab"),
            ("NUMBER_PG_lru", "PG_lru"),
            ("NUMBER_PG_head_mask", "PG_head_mask"),
            ("OFFSET_page__compound_order", "order"),
        ],
    )
    def test_others_are_said(self, key: str, what: str) -> None:
        """The class that needs the key is reported, and layout building goes on."""
        assert any(what in text for text in layout_of("6.1", **{key: None}).unknown)

    def test_no_default_for_slab_beside_the_type(self) -> None:
        """v6.10 and later do not export PG_slab, and bit 7 is PG_waiters there."""
        assert layout_of("6.12").masks.slab == 0

    def test_is_needed_at_level_zero_for_hwpoison_alone(self) -> None:
        """As makedumpfile: the pass runs at any level when PG_hwpoison is known."""
        without = layout_of("6.1", NUMBER_PG_hwpoison=None)
        no_buddy = layout_of("6.1", NUMBER_PG_hwpoison=None, NUMBER_PAGE_BUDDY_MAPCOUNT_VALUE=None)

        assert layout_of("6.1").is_needed(0)
        assert [without.is_needed(level) for level in (0, 1, 2, 4, 8, 16)] == [
            False, False, True, True, True, True,
        ]  # fmt: skip
        assert not no_buddy.is_needed(16)


class TestLies:
    @pytest.mark.parametrize("size", ["0", "-64", "24", "63", "512", "1000000000"])
    def test_size_of_struct_page(self, size: str) -> None:
        """No kernel's is below 32 bytes, above 256, or odd."""
        with pytest.raises(FormatError, match=r"SIZE\(page\)"):
            layout_of("6.1", SIZE_page=size)

    @pytest.mark.parametrize(
        "member", ["flags", "mapping", "_mapcount", "private", "compound_head", "compound_order"]
    )
    @pytest.mark.parametrize("offset", ["-1", "64", "4096", "99999999999999999999"])
    def test_offsets_outside_struct_page(self, member: str, offset: str) -> None:
        """The next struct page, or another page, would be read."""
        with pytest.raises(FormatError, match=f"page.{member}"):
            layout_of("6.1", **{f"OFFSET_page__{member}": offset})

    def test_offset_must_leave_room_for_the_word(self) -> None:
        """Offset 57 leaves seven bytes of a word of eight."""
        assert layout_of("6.1", OFFSET_page__private="56").private_off == 56
        with pytest.raises(FormatError, match=r"page\.private"):
            layout_of("6.1", OFFSET_page__private="57")

    @pytest.mark.parametrize("name", ["PG_lru", "PG_private", "PG_hwpoison", "PG_slab"])
    @pytest.mark.parametrize("number", ["-1", "64", "100000"])
    def test_bit_numbers(self, name: str, number: str) -> None:
        """A shift by so much would take all memory or raise."""
        with pytest.raises(FormatError, match=name):
            layout_of("6.1", **{f"NUMBER_{name}": number})

    @pytest.mark.parametrize("mask", ["0", "-1", str(1 << 64)])
    def test_head_mask(self, mask: str) -> None:
        """It must be inside a word."""
        with pytest.raises(FormatError, match="PG_head_mask"):
            layout_of("6.1", NUMBER_PG_head_mask=mask)

    @pytest.mark.parametrize("length", ["0", "-1", "33", "4000000000"])
    def test_number_of_orders(self, length: str) -> None:
        """It becomes a shift too."""
        with pytest.raises(FormatError, match="free_area"):
            layout_of("6.1", LENGTH_zone__free_area=length)

    def test_size_of_a_list_head_gives_the_word(self) -> None:
        """Two pointers: 8 bytes on 32-bit kernels, 16 on 64-bit ones, nothing else."""
        assert layout_of("6.1", SIZE_list_head="8", OFFSET_page__private="28").word == 4
        with pytest.raises(FormatError, match="list_head"):
            layout_of("6.1", SIZE_list_head="12")
