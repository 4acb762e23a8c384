"""Where a riscv64 kernel says its tables are."""

from __future__ import annotations

import pytest

from pipeline.errors import FormatError, MissingInfoError
from stages.arch.layout import LinearMap
from stages.arch.riscv64 import layouts
from tests.unit.arch.made_info import image_of, info_of

TOP = 0xFFFFFFFF81D69000
LINES = {
    "SYMBOL(swapper_pg_dir)": TOP,
    "NUMBER(VA_BITS)": 57,
    "NUMBER(phys_ram_base)": 0x80000000,
    "NUMBER(PAGE_OFFSET)": "0xff60000000000000",
    "NUMBER(KERNEL_LINK_ADDR)": "0xffffffff80000000",
    "NUMBER(va_kernel_pa_offset)": "0xfffffffeffe00000",
}
IMAGE = image_of("riscv64")


def test_offset_that_the_kernel_tells() -> None:
    """The kernel's virtual minus its physical address places the top table."""
    (layout, *_) = layouts(info_of(LINES), IMAGE)

    assert layout.root == 0x81F69000
    assert layout.form.name == "riscv64-sv57"
    assert layout.direct_map == LinearMap(0xFF60000000000000, 0x80000000)


def test_kernels_that_do_not_tell() -> None:
    """The kernel is then at the start of memory or behind its firmware: both are tried."""
    lines = {key: value for key, value in LINES.items() if key != "NUMBER(va_kernel_pa_offset)"}
    roots = [layout.root for layout in layouts(info_of(lines), IMAGE)]

    assert roots == [0x81D69000, 0x81F69000]


def test_kaslr() -> None:
    """The link address is moved by KERNELOFFSET before it is taken for the kernel's."""
    lines = {key: value for key, value in LINES.items() if key != "NUMBER(va_kernel_pa_offset)"}
    lines |= {"KERNELOFFSET": "800000"}

    assert layouts(info_of(lines), IMAGE)[0].root == 0x81569000


@pytest.mark.parametrize("va_bits", [0, 32, 47, 64])
def test_unknown_mode(va_bits: int) -> None:
    """There are three modes."""
    with pytest.raises(FormatError, match="39, 48 or 57"):
        layouts(info_of(LINES | {"NUMBER(VA_BITS)": va_bits}), IMAGE)


def test_nothing_tells() -> None:
    """A kernel that could be anywhere is refused, not guessed."""
    lines = {key: LINES[key] for key in ("SYMBOL(swapper_pg_dir)", "NUMBER(VA_BITS)")}

    with pytest.raises(MissingInfoError, match="va_kernel_pa_offset"):
        layouts(info_of(lines), IMAGE)
