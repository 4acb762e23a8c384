"""Where s390x, ppc64 and loongarch64 kernels say their tables are."""

from __future__ import annotations

import pytest

from pipeline.errors import FormatError, UnsupportedError
from stages.arch import loongarch64, ppc64, s390x
from stages.arch.layout import LinearMap
from tests.unit.arch.made_info import image_of, info_of

NOWHERE = image_of("any")


class TestS390x:
    def test_one_to_one(self) -> None:
        """An older kernel's top table lies at its own address, with 3, 4 or 5 levels."""
        found = s390x.layouts(info_of({"SYMBOL(swapper_pg_dir)": 0x1234000}), NOWHERE)

        assert [(one.root, len(one.form.levels)) for one in found] == [
            (0x1234000, 3),
            (0x1234000, 4),
            (0x1234000, 5),
        ]

    def test_kernel_of_its_own_mapping(self) -> None:
        """Since v6.10 text and memory are mapped apart; the numbers are hex without 0x."""
        lines = {
            "SYMBOL(swapper_pg_dir)": 0x3FFE1234000,
            "KERNELOFFSET": "3ffe0000000",
            "KERNELOFFPHYS": "100000",
            "IDENTITYBASE": "8000000000",
        }
        layout = s390x.layouts(info_of(lines), NOWHERE)[0]

        assert layout.root == 0x1334000
        assert layout.direct_map == LinearMap(0x8000000000, 0)

    def test_wild_table(self) -> None:
        """An address where no table can be is refused."""
        with pytest.raises(FormatError, match="swapper_pg_dir"):
            s390x.layouts(info_of({"SYMBOL(swapper_pg_dir)": 0x1234567}), NOWHERE)


class TestPpc64:
    @pytest.mark.parametrize(
        ("page_size", "name"), [(4096, "ppc64-radix-4k"), (65536, "ppc64-radix-64k")]
    )
    def test_root(self, page_size: int, name: str) -> None:
        """The kernel lies in the direct map, which starts with the start of memory."""
        lines = {"SYMBOL(swapper_pg_dir)": 0xC000000002A50000, "NUMBER(RADIX_MMU)": 1}
        (layout,) = ppc64.layouts(info_of(lines, page_size=page_size), NOWHERE)

        assert (layout.root, layout.form.name) == (0x2A50000, name)

    def test_hash_mmu(self) -> None:
        """A machine whose tables are no tree is named as what it is."""
        lines = {"SYMBOL(swapper_pg_dir)": 0xC000000002A50000, "NUMBER(RADIX_MMU)": 0}

        with pytest.raises(UnsupportedError, match="hash MMU"):
            ppc64.layouts(info_of(lines, page_size=65536), NOWHERE)


class TestLoongarch64:
    @pytest.mark.parametrize(
        ("page_size", "levels"), [(4096, [3, 4]), (16384, [3, 2]), (65536, [3, 2])]
    )
    def test_levels_are_tried(self, page_size: int, levels: list[int]) -> None:
        """The number of levels is told by nothing, so that all that can be built are tried."""
        lines = {
            "SYMBOL(swapper_pg_dir)": 0x9000000001234000,
            "SYMBOL(vmemmap)": 0xFFFFFE0000000000,
        }
        found = loongarch64.layouts(info_of(lines, page_size=page_size), NOWHERE)

        assert [len(one.form.levels) for one in found] == levels
        assert {(one.root, one.mapped) for one in found} == {(0x1234000, 0xFFFFFE0000000000)}

    def test_top_table_that_a_table_would_have_to_map(self) -> None:
        """The top table lies in a window, or nothing can be translated."""
        with pytest.raises(FormatError, match="swapper_pg_dir"):
            loongarch64.layouts(info_of({"SYMBOL(swapper_pg_dir)": 0xFFFF800001234000}), NOWHERE)
