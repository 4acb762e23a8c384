"""Opening the kernel of an image."""

from __future__ import annotations

import pytest

from pipeline.errors import (
    FormatError,
    MissingInfoError,
    MissingPageError,
    UnsupportedError,
)
from stages.arch.x86_64 import FIVE_LEVELS, TEXT_START
from stages.reader.image import LoadSegment
from stages.reader.remote_link import SourceError
from stages.translator.kernel import open_kernel
from tests.support.pagetable_builder import DictPages
from tests.unit.translator.made_kernel import (
    PAGE_OFFSET,
    PHYS_BASE,
    RELEASE,
    TOP_TABLE,
    UTSNAME,
    MadeKernel,
)


def kernel_physical(vaddr: int) -> int:
    return vaddr - TEXT_START + PHYS_BASE


class TestOpening:
    async def test_plain_kernel(self) -> None:
        """phys_base, release and direct map are found, and there is nothing to warn of."""
        kernel = await MadeKernel().open()

        assert kernel.phys_base == PHYS_BASE
        assert await kernel.find_page_offset() == PAGE_OFFSET
        assert kernel.warnings == []
        assert (await kernel.utsname())[130:].startswith(RELEASE.encode())

    async def test_five_levels(self) -> None:
        """pgtable_l5_enabled chooses the five-level form, and its direct map is found."""
        kernel = await MadeKernel(FIVE_LEVELS, page_offset=0xFF11000000000000).open()

        assert kernel.layout.form is FIVE_LEVELS
        assert await kernel.find_page_offset() == 0xFF11000000000000
        assert kernel.warnings == []

    async def test_encryption_bit_is_no_address(self) -> None:
        """The SME bit in entries is stripped from all addresses."""
        made = MadeKernel(vmcoreinfo={"NUMBER(sme_mask)": 1 << 47})
        for page in made.tables.pages.values():
            for at in range(0, 4096, 8):
                if page[at] & 1 and not page.startswith(b"Linux"):
                    page[at + 5] |= 0x80

        kernel = await made.open()

        assert kernel.warnings == []
        assert await kernel.find_page_offset() == PAGE_OFFSET

    async def test_direct_map_from_headers(self) -> None:
        """A PT_LOAD whose virtual address is real gives the start of the direct map."""
        made = MadeKernel()
        made.image.info.loads = [
            LoadSegment(0x100000, 0x100000, PAGE_OFFSET, 0, 0),
            LoadSegment(0x100000, PAGE_OFFSET + 0x100000, 4096, 0, 4096),
            LoadSegment(None, 0xFFFF900000000000, 4096, 0, 4096),
        ]

        kernel = await made.open()

        assert await kernel.find_page_offset() == PAGE_OFFSET

    async def test_no_direct_map(self) -> None:
        """A start of the direct map that leads elsewhere is not believed."""
        made = MadeKernel()
        elsewhere = PAGE_OFFSET - (1 << 39)
        made.tables.map(elsewhere, 0x200000, 21)
        top_table = elsewhere - 0x200000 + kernel_physical(TOP_TABLE)
        made.tables.map(top_table, 0x3000000, 21)

        kernel = await made.open()

        assert await kernel.find_page_offset() is None

    async def test_direct_map_is_looked_for_when_asked(self) -> None:
        """Opening reads no table of the direct map; asking does, once."""
        made = MadeKernel()
        kernel = await made.open()
        n_requests = [len(made.reader.requests)]
        for _ in range(2):
            assert await kernel.find_page_offset() == PAGE_OFFSET
            n_requests.append(len(made.reader.requests))

        assert n_requests[0] < n_requests[1] == n_requests[2]

    async def test_direct_map_behind_a_line_that_breaks(self) -> None:
        """The failure comes to whoever asks, and the next one who asks is answered."""
        made = MadeKernel()
        kernel = await made.open()
        made.reader.error = SourceError("the line is cut")
        with pytest.raises(SourceError, match="the line is cut"):
            await kernel.find_page_offset()
        made.reader.error = None

        assert await kernel.find_page_offset() == PAGE_OFFSET


class TestPhysBase:
    @pytest.mark.parametrize("source", ["sub header", "load"])
    async def test_where_vmcoreinfo_is_silent(self, source: str) -> None:
        """Without NUMBER(phys_base), the dump's header or the text's PT_LOAD tell."""
        made = MadeKernel(vmcoreinfo={"NUMBER(phys_base)": None})
        if source == "sub header":
            made.image.info.phys_base = PHYS_BASE
        else:
            load = LoadSegment(PHYS_BASE + 0x1000, TEXT_START + 0x1000, 4096, 0, 4096)
            made.image.info.loads = [load]

        kernel = await made.open()

        assert kernel.phys_base == PHYS_BASE
        assert kernel.warnings == []

    async def test_wrong_one_is_passed_over(self) -> None:
        """When VMCOREINFO's phys_base finds no utsname, the next source is taken, with a word."""
        made = MadeKernel(vmcoreinfo={"NUMBER(phys_base)": 0x2000000})
        made.image.info.phys_base = PHYS_BASE

        kernel = await made.open()

        assert kernel.phys_base == PHYS_BASE
        assert len(kernel.warnings) == 1
        assert "0x2000000 from VMCOREINFO" in kernel.warnings[0]

    async def test_other_release_in_memory(self) -> None:
        """A utsname that does not fit VMCOREINFO is a warning, not an end."""
        made = MadeKernel()
        made.write_utsname(UTSNAME, release="5.4.0-other")

        kernel = await made.open()

        assert kernel.phys_base == PHYS_BASE
        assert "5.4.0-other" in kernel.warnings[0]


class TestUtsname:
    @pytest.mark.parametrize("offset", [0, 4])
    async def test_offset_not_told(self, offset: int) -> None:
        """Where OFFSET(uts_namespace.name) is missing, both places are looked at."""
        made = MadeKernel(vmcoreinfo={"OFFSET(uts_namespace.name)": None})
        made.write(UTSNAME, bytes(400))
        made.write_utsname(UTSNAME + offset)

        kernel = await made.open()

        assert kernel.warnings == []
        assert len(await kernel.utsname()) == 390

    async def test_page_not_in_the_image(self) -> None:
        """A utsname that was left out is a warning at first, and an error when asked for."""
        made = MadeKernel()
        pfn = made.lose(UTSNAME)

        kernel = await made.open()

        assert "not in the image" in kernel.warnings[0]
        with pytest.raises(MissingPageError) as caught:
            await kernel.utsname()
        assert caught.value.pfn == pfn

    async def test_symbol_not_told(self) -> None:
        """The warning names the key that kernels have, not that of v2.6.18."""
        kernel = await MadeKernel(vmcoreinfo={"SYMBOL(init_uts_ns)": None}).open()

        assert "SYMBOL(init_uts_ns) is missing" in kernel.warnings[0]


class TestRefusals:
    async def test_no_vmcoreinfo(self) -> None:
        """An image without VMCOREINFO can't be translated."""
        with pytest.raises(MissingInfoError, match="VMCOREINFO"):
            await open_kernel(MadeKernel().image, DictPages({}, page_size=4096))

    async def test_other_machine(self) -> None:
        """An architecture without a table is named."""
        made = MadeKernel()
        made.image.info.machine = "alpha"

        with pytest.raises(UnsupportedError, match="alpha"):
            await made.open()

    async def test_no_top_table(self) -> None:
        """VMCOREINFO without any name for the top table is refused with the key."""
        with pytest.raises(MissingInfoError, match="init_top_pgt"):
            await MadeKernel(vmcoreinfo={"SYMBOL(init_top_pgt)": None}).open()

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("SYMBOL(init_top_pgt)", "ffff888000001000"),
            ("SYMBOL(init_top_pgt)", f"{TOP_TABLE + 8:x}"),
            ("NUMBER(sme_mask)", 3 << 47),
            ("NUMBER(sme_mask)", -1),
            ("NUMBER(sme_mask)", 0x1000),
            ("PAGESIZE", 65536),
        ],
    )
    async def test_impossible_value(self, key: str, value: object) -> None:
        """A value that can't be true is refused with its key."""
        with pytest.raises(FormatError, match=key.replace("(", r"\(").replace(")", r"\)")):
            await MadeKernel(vmcoreinfo={key: value}).open()

    async def test_wild_phys_base(self) -> None:
        """A phys_base outside the physical address space is passed over for one inside."""
        made = MadeKernel(vmcoreinfo={"NUMBER(phys_base)": -(1 << 70)})
        made.image.info.phys_base = PHYS_BASE

        kernel = await made.open()

        assert kernel.phys_base == PHYS_BASE
