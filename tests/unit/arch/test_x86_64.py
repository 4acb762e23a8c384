"""Where an x86_64 kernel says its tables are."""

from __future__ import annotations

import pytest

from stages.arch.x86_64 import TEXT_START, layouts, page_offsets
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo, LoadSegment


def info_of(**lines: object) -> VmcoreInfo:
    text = "OSRELEASE=6.1\nPAGESIZE=4096\n"
    return VmcoreInfo.parse(
        (text + "".join(f"{key}={value}\n" for key, value in lines.items())).encode()
    )


def image_of(*loads: LoadSegment, phys_base: int | None = None) -> ImageInfo:
    return ImageInfo("elf", "x86_64", 4096, loads=list(loads), phys_base=phys_base)


class TestLayouts:
    @pytest.mark.parametrize("phys_base", [0, 0x1000000, -0x14800000])
    def test_root(self, phys_base: int) -> None:
        """The top table's place is its symbol in the text window, moved by phys_base."""
        info = info_of(
            **{
                "SYMBOL(init_top_pgt)": f"{TEXT_START + 0x2A610000:x}",
                "NUMBER(phys_base)": phys_base,
            }
        )

        assert layouts(info, image_of())[0].root == 0x2A610000 + phys_base

    @pytest.mark.parametrize("symbol", ["init_top_pgt", "init_level4_pgt", "swapper_pg_dir"])
    def test_names_of_the_top_table(self, symbol: str) -> None:
        """Any of the names that kernels gave the top table will do."""
        info = info_of(**{f"SYMBOL({symbol})": f"{TEXT_START + 0x5000:x}"})

        assert layouts(info, image_of())[0].root == 0x5000

    def test_order_of_sources(self) -> None:
        """VMCOREINFO comes first, then the dump's header, then the text's PT_LOAD, then 0."""
        info = info_of(
            **{"SYMBOL(init_top_pgt)": f"{TEXT_START + 0x5000:x}", "NUMBER(phys_base)": 0x1000}
        )
        image = image_of(
            LoadSegment(0x100000, 0xFFFF888000100000, 4096, 0, 4096),
            LoadSegment(0x3000, TEXT_START, 4096, 0, 4096),
            LoadSegment(None, TEXT_START, 4096, 0, 4096),
            phys_base=0x2000,
        )

        assert [layout.phys_base for layout in layouts(info, image)] == [0x1000, 0x2000, 0x3000, 0]

    def test_same_source_twice(self) -> None:
        """Sources that agree make one guess."""
        info = info_of(
            **{"SYMBOL(init_top_pgt)": f"{TEXT_START + 0x5000:x}", "NUMBER(phys_base)": 0}
        )

        assert len(layouts(info, image_of(phys_base=0))) == 1

    def test_encryption(self) -> None:
        """The form that a layout carries ignores the encryption bit."""
        info = info_of(
            **{"SYMBOL(init_top_pgt)": f"{TEXT_START + 0x5000:x}", "NUMBER(sme_mask)": 1 << 51}
        )

        (layout,) = layouts(info, image_of())

        assert all(
            piece.mask >> 51 & 1 == 0 for level in layout.form.levels for piece in level.table
        )


class TestPageOffsets:
    def test_loads_that_say_something(self) -> None:
        """Only loads with a real virtual address below the text window count, last one first."""
        image = image_of(
            LoadSegment(0x1000, 0xFFFF888000001000, 4096, 0, 4096),
            LoadSegment(0x100000, 0xFFFF888100100000, 4096, 0, 4096),
            LoadSegment(0x2000, 0, 4096, 0, 4096),
            LoadSegment(0x3000, 0x3000, 4096, 0, 4096),
            LoadSegment(None, 0xFFFF888000001000, 4096, 0, 4096),
            LoadSegment(0x1000000, TEXT_START, 4096, 0, 4096),
        )

        assert list(page_offsets(image)) == [0xFFFF888100000000, 0xFFFF888000000000]
