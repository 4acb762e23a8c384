"""Kernels of all architectures but x86_64, opened as the product opens them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from pipeline.errors import MissingPageError
from stages.arch import aarch64, loongarch64, ppc64, riscv64, s390x
from stages.arch.paging import PagingForm
from stages.reader.image import ImageInfo
from stages.translator.kernel import Kernel, open_kernel
from stages.translator.ranges import PhysRun
from tests.support.pagetable_builder import DictPages, PageTableBuilder
from tests.unit.translator.made_kernel import MemoryImage

RELEASE = "6.12.0-made"
UTSNAME_OFF = 0x2100


@dataclass
class Made:
    """A kernel of 64 KiB: top table at `root`, text with utsname, `text` -> `text_paddr`.

    `linear` are virtual and physical addresses of one more leaf, 2**linear_bits bytes large.
    """

    machine: str
    form: PagingForm
    root: int
    text: int
    text_paddr: int
    lines: dict[str, object]
    linear: tuple[int, int, int] | None = None
    text_bits: int = 0
    builder: PageTableBuilder = field(init=False)

    def __post_init__(self) -> None:
        self.builder = PageTableBuilder(self.form, self.root)
        if self.text_bits:
            self.builder.map(self.text, self.text_paddr, self.text_bits)
        if self.linear is not None:
            self.builder.map(*self.linear)
            page = self.linear[1] >> self.form.page_bits
            self.builder.pages.setdefault(page, bytearray(1 << self.form.page_bits))
        words = ("Linux", "made", RELEASE, "#1", self.machine, "(none)")
        utsname = b"".join(word.encode().ljust(65, b"\0") for word in words)
        page_size = 1 << self.form.page_bits
        text_page, at = divmod(self.text_paddr + UTSNAME_OFF, page_size)
        blank = self.builder.pages.setdefault(text_page, bytearray(page_size))
        blank[at : at + len(utsname)] = utsname

    async def open(self, changes: Mapping[str, object] | None = None) -> Kernel:
        lines = {
            "OSRELEASE": RELEASE,
            "PAGESIZE": 1 << self.form.page_bits,
            "SYMBOL(init_uts_ns)": f"{self.text + UTSNAME_OFF:x}",
            "OFFSET(uts_namespace.name)": 0,
            **self.lines,
            **(changes or {}),
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items()).encode()
        page_size = 1 << self.form.page_bits
        info = ImageInfo("elf", self.machine, page_size, vmcoreinfo=text)
        pages = DictPages(self.builder.pages, page_size=page_size)
        return await open_kernel(MemoryImage(self.builder.pages, info), pages)


def arm64_64k() -> Made:
    """52 bits on a machine of 48: the kernel's text in the last entries of the top table."""
    text = 0xFFFF800008000000
    return Made(
        machine="aarch64",
        form=aarch64.paging_form(16, 52, 48),
        root=0x40100000,
        text=text,
        text_paddr=0x40200000,
        text_bits=16,
        lines={
            "SYMBOL(swapper_pg_dir)": f"{text - 0x100000:x}",
            "SYMBOL(_stext)": f"{text:x}",
            "NUMBER(VA_BITS)": 52,
            "NUMBER(TCR_EL1_T1SZ)": "0x10",
            "NUMBER(kimage_voffset)": hex(text - 0x40200000),
            "NUMBER(PHYS_OFFSET)": hex((0x40000000 - (0x000F << 48)) % (1 << 64)),
        },
        linear=(0xFFFF000000100000, 0x40100000, 16),
    )


def riscv64_sv48() -> Made:
    text = 0xFFFFFFFF80000000
    return Made(
        machine="riscv64",
        form=riscv64.paging_form(48),
        root=0x80400000,
        text=text,
        text_paddr=0x80200000,
        text_bits=21,
        lines={
            "SYMBOL(swapper_pg_dir)": f"{text + 0x200000:x}",
            "NUMBER(VA_BITS)": 48,
            "NUMBER(PAGE_OFFSET)": "0xffffaf8000000000",
            "NUMBER(phys_ram_base)": 0x80000000,
            "NUMBER(va_kernel_pa_offset)": hex(text - 0x80200000),
        },
        linear=(0xFFFFAF8000400000, 0x80400000, 21),
    )


def s390x_4l() -> Made:
    """Linux since v6.10, with text and memory mapped apart."""
    text = 0x3FFE0000000
    return Made(
        machine="s390x",
        form=s390x.paging_form(4),
        root=0x400000,
        text=text,
        text_paddr=0x300000,
        text_bits=20,
        lines={
            "SYMBOL(swapper_pg_dir)": f"{text + 0x100000:x}",
            "IDENTITYBASE": "80000000000",
            "KERNELOFFSET": f"{text:x}",
            "KERNELOFFPHYS": "300000",
        },
        linear=(0x80000400000, 0x400000, 20),
    )


def ppc64le_64k() -> Made:
    text = ppc64.PAGE_OFFSET
    return Made(
        machine="ppc64le",
        form=ppc64.paging_form(16),
        root=0x1000000,
        text=text,
        text_paddr=0,
        text_bits=30,
        lines={
            "SYMBOL(swapper_pg_dir)": f"{text + 0x1000000:x}",
            "NUMBER(RADIX_MMU)": 1,
        },
    )


def loongarch64_16k() -> Made:
    """Text in a window; one page of vmemmap by tables of two levels, which are tried second."""
    text = 0x9000000000200000
    return Made(
        machine="loongarch64",
        form=loongarch64.paging_form(14, 2),
        root=0x400000,
        text=text,
        text_paddr=0x200000,
        lines={
            "SYMBOL(swapper_pg_dir)": "9000000000400000",
            "SYMBOL(vmemmap)": "ffff800100000000",
        },
        linear=(0xFFFF800100000000, 0x600000, 14),
    )


PAGE_OFFSETS = {
    arm64_64k: 0xFFF0000000000000,
    riscv64_sv48: 0xFFFFAF8000000000,
    s390x_4l: 0x80000000000,
    ppc64le_64k: 0xC000000000000000,
    loongarch64_16k: 0x9000000000000000,
}


@pytest.mark.parametrize("make", PAGE_OFFSETS, ids=lambda make: make.__name__)
async def test_opens(make: Callable[[], Made]) -> None:
    """The right form and top table are found by utsname, and so is the direct map."""
    made = make()
    kernel = await made.open()

    assert kernel.layout.form is made.form
    assert kernel.layout.root == made.root
    assert (await kernel.utsname()).split(b"\0")[0] == b"Linux"
    assert await kernel.find_page_offset() == PAGE_OFFSETS[make]


async def test_big_endian_numbers() -> None:
    """s390x numbers are read in s390x's order."""
    made = s390x_4l()
    kernel = await made.open()

    assert await kernel.read_u32(made.text + UTSNAME_OFF) == int.from_bytes(b"Linu", "big")


async def test_wrong_guesses_are_told() -> None:
    """Forms that were tried first and did not fit are warned of, by name."""
    kernel = await loongarch64_16k().open()

    assert len(kernel.warnings) == 1
    assert kernel.warnings[0].startswith("loongarch64-16k-3l with its top table at 0x400000")


async def test_page_that_is_not_in_the_image() -> None:
    """The error has the physical address by the kernel's own page size."""
    made = arm64_64k()
    kernel = await made.open()
    made.builder.map(made.text + 0x10000, 0x50000000, 16)

    with pytest.raises(MissingPageError, match=r"paddr 0x50000000 \(pfn 0x5000\)"):
        await kernel.read(made.text + 0x10000, 8)


async def test_runs_through_a_direct_window() -> None:
    """A window is one run, whatever is asked for; holes lie before and after it."""
    space = (await loongarch64_16k().open()).translator
    end = 1 << 48

    assert await space.runs(0x9000000000200000, 1 << 40) == [
        PhysRun(0x9000000000200000, 0x200000, 1 << 40)
    ]
    assert await space.runs(0x9000000000000000 + end - 16, 48) == [
        PhysRun(0x9000000000000000 + end - 16, end - 16, 16),
        PhysRun(0x9000000000000000 + end, None, 32),
    ]
    assert (await space.explain(0x8000000000001234)).paddr == 0x1234
