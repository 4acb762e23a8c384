"""Where an aarch64 kernel says its tables are, and of which form they are."""

from __future__ import annotations

import pytest

from pipeline.errors import FormatError, MissingInfoError
from stages.arch.aarch64 import layouts
from stages.arch.layout import LinearMap
from tests.unit.arch.made_info import image_of, info_of

TOP = 0xFFFFDCB02F053000
WRAP = 1 << 64
# Linux 6.1 of Debian 12 on a machine of 512 MiB from 1 GiB on.
DEBIAN = {
    "SYMBOL(swapper_pg_dir)": TOP,
    "SYMBOL(_stext)": 0xFFFFDCB02DA10000,
    "NUMBER(VA_BITS)": 48,
    "NUMBER(kimage_voffset)": "0xffffdcafed800000",
    "NUMBER(PHYS_OFFSET)": "0xffffa65c40000000",
    "NUMBER(TCR_EL1_T1SZ)": "0x10",
}
IMAGE = image_of("aarch64")


class TestRoot:
    def test_kimage_voffset(self) -> None:
        """The kernel's virtual minus its physical address places the top table."""
        (layout, *_) = layouts(info_of(DEBIAN), IMAGE)

        assert layout.root == 0x41853000
        assert layout.form.name == "aarch64-4k-48"

    def test_pt_load(self) -> None:
        """Without that number the load that holds the kernel's text does."""
        lines = DEBIAN | {"NUMBER(kimage_voffset)": "none"}
        image = image_of("aarch64", (0x40000000, 0xFFFFDCB02D800000))

        assert layouts(info_of(lines), image)[0].root == 0x41853000

    def test_nothing_tells(self) -> None:
        """A kernel that could be anywhere is refused, not guessed."""
        lines = {key: DEBIAN[key] for key in ("SYMBOL(swapper_pg_dir)", "NUMBER(VA_BITS)")}

        with pytest.raises(MissingInfoError, match="kimage_voffset"):
            layouts(info_of(lines), IMAGE)


class TestDirectMap:
    def test_wraps(self) -> None:
        """A randomised map starts before memory does: PHYS_OFFSET is then below 0."""
        (layout, *_) = layouts(info_of(DEBIAN), IMAGE)

        assert layout.direct_map == LinearMap(0xFFFF000000000000, 0xFFFFA65C40000000)

    @pytest.mark.parametrize(
        ("phys_offset", "phys_base"),
        [("0xffffa65c40000000", 0x40000000 - (0x59A4 << 32)), ("0x40000000", 0x40000000)],
    )
    def test_start_for_people(self, phys_offset: str, phys_base: int) -> None:
        """A start below 0 is a negative number, as PHYS_OFFSET is to the kernel."""
        (layout, *_) = layouts(info_of(DEBIAN | {"NUMBER(PHYS_OFFSET)": phys_offset}), IMAGE)

        assert layout.phys_base == phys_base

    def test_52_bits_on_a_machine_with_48(self) -> None:
        """The map starts where 52 bits put it, and PHYS_OFFSET makes up for the difference."""
        start = 0x40000000 - (0xFFFF << 48) + (0xFFF0 << 48)
        lines = DEBIAN | {"NUMBER(VA_BITS)": 52, "NUMBER(PHYS_OFFSET)": f"{start % WRAP:#x}"}
        (layout, *_) = layouts(info_of(lines, page_size=65536), IMAGE)

        assert isinstance(layout.direct_map, LinearMap)
        vaddr = 0xFFFF000000001000
        paddr = (vaddr - layout.direct_map.vaddr + layout.direct_map.paddr) % WRAP
        assert paddr == 0x40001000

    def test_before_the_flip(self) -> None:
        """Up to v5.3 the map filled the upper half, and the kernel lay in the lower one."""
        lines = DEBIAN | {"SYMBOL(_stext)": 0xFFFF000008081000, "NUMBER(PHYS_OFFSET)": "0x40000000"}
        (layout, *_) = layouts(info_of(lines), IMAGE)

        assert layout.direct_map == LinearMap(0xFFFF800000000000, 0x40000000)


class TestForm:
    @pytest.mark.parametrize(
        ("page_size", "built", "t1sz", "name", "top_bits", "n_levels"),
        [
            (4096, 39, 25, "aarch64-4k-39", 9, 3),
            (4096, 48, 16, "aarch64-4k-48", 9, 4),
            (4096, 52, 12, "aarch64-4k-52", 4, 5),
            (4096, 52, 16, "aarch64-4k-48", 9, 4),
            (16384, 36, 28, "aarch64-16k-36", 11, 2),
            (16384, 47, 17, "aarch64-16k-47", 11, 3),
            (16384, 52, 12, "aarch64-16k-52", 5, 4),
            (16384, 52, 17, "aarch64-16k-47", 11, 3),
            (65536, 42, 22, "aarch64-64k-42", 13, 2),
            (65536, 48, 16, "aarch64-64k-48", 6, 3),
            (65536, 52, 12, "aarch64-64k-52", 10, 3),
            (65536, 52, 16, "aarch64-64k-48in52", 10, 3),
        ],
    )
    def test_by_page_size_and_bits(
        self, page_size: int, built: int, t1sz: int, name: str, top_bits: int, n_levels: int
    ) -> None:
        """What the kernel was built for and what the machine has decide together."""
        lines = DEBIAN | {"NUMBER(VA_BITS)": built, "NUMBER(TCR_EL1_T1SZ)": hex(t1sz)}
        form = layouts(info_of(lines, page_size=page_size), IMAGE)[0].form

        assert (form.name, form.levels[0].bits, len(form.levels)) == (name, top_bits, n_levels)
        assert form.windows[0].first == WRAP - (1 << (64 - t1sz))

    @pytest.mark.parametrize(
        ("mem_section", "bits"), [(0xFFFF59A41FECF380, 48), (0xFFF059A41FECF380, 52)]
    )
    def test_before_t1sz_was_told(self, mem_section: int, bits: int) -> None:
        """An address of the direct map shows whether a kernel of 52 bits got them."""
        lines = DEBIAN | {"NUMBER(VA_BITS)": 52, "SYMBOL(mem_section)": mem_section}
        del lines["NUMBER(TCR_EL1_T1SZ)"]
        form = layouts(info_of(lines, page_size=65536), IMAGE)[0].form

        assert form.windows[0].first == WRAP - (1 << bits)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("NUMBER(VA_BITS)", 53), ("NUMBER(VA_BITS)", -1), ("NUMBER(TCR_EL1_T1SZ)", "0x0")],
    )
    def test_wild_numbers(self, key: str, value: object) -> None:
        """Bits that no machine has are refused by name."""
        with pytest.raises(FormatError) as caught:
            layouts(info_of(DEBIAN | {key: value}), IMAGE)

        assert caught.value.field == key
