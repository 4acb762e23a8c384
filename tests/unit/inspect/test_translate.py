"""What `dumpstream translate` shows."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import UsageError
from pipeline.memory.extents import ExtentSet
from stages.arch.x86_64 import TEXT_START
from stages.inspect.translate import parse_address, translate
from tests.unit.translator.made_kernel import PAGE_OFFSET, PHYS_BASE, UTSNAME, MadeKernel


class TestAddresses:
    @pytest.mark.parametrize("text", ["0xffffffff81000000", "ffffffff81000000", "FFFFFFFF81000000"])
    def test_spellings(self, text: str) -> None:
        """Hexadecimal, with 0x or without, in any case."""
        assert parse_address(text) == 0xFFFFFFFF81000000

    @pytest.mark.parametrize(
        "text", ["", "init_task", "-1", "1ffffffffffffffff", "0x", "1_0", " 1"]
    )
    def test_nonsense(self, text: str) -> None:
        """Anything else is the user's mistake, and quoted back."""
        with pytest.raises(UsageError, match="address"):
            parse_address(text)


class TestText:
    async def test_large_page(self) -> None:
        """Each step tells its entry, where it lies, what it means and its flags."""
        made = MadeKernel()
        kernel = await made.open()
        pgd = made.tables.root
        pud, pmd, leaf = pgd + 0x1000, pgd + 0x2000, PHYS_BASE + (2 << 20)

        shown = await translate(kernel, made.image, UTSNAME + 0x42)

        assert shown.found
        assert shown.lines() == [
            f"vaddr {UTSNAME + 0x42:#x}",
            f"  pgd[511] at {pgd + 0xFF8:#x} = {pud | 1:#x}  table {pud:#x}  PRESENT",
            f"  pud[510] at {pud + 0xFF0:#x} = {pmd | 1:#x}  table {pmd:#x}  PRESENT",
            f"  pmd[1] at {pmd + 8:#x} = {leaf | 0x81:#x}  2 MiB leaf {leaf:#x}  PRESENT|PSE",
            f"paddr {leaf + 0x42:#x}  pfn {leaf >> 12:#x}  in the image",
        ]

    @pytest.mark.parametrize(
        ("vaddr", "where"),
        [
            (PAGE_OFFSET + 0x1000, "left out of the image"),
            (PAGE_OFFSET + 0x3F00000, "not memory of the image"),
            (PAGE_OFFSET + 0x2000, "in the image"),
        ],
    )
    async def test_whether_the_image_has_it(self, vaddr: int, where: str) -> None:
        """A page may be in the image, left out of it, or no memory of it at all."""
        made = MadeKernel()
        made.image.lost.add(1)
        made.image.ram = ExtentSet.from_pairs([(0, 0x3F00)])

        shown = await translate(await made.open(), made.image, vaddr)

        assert shown.lines()[-1].endswith(f"  {where}")

    async def test_not_mapped(self) -> None:
        """The last line says which entry ends the walk."""
        made = MadeKernel()
        kernel = await made.open()

        shown = await translate(kernel, made.image, 0x5000)

        root = made.tables.root
        assert not shown.found
        assert shown.lines() == [
            "vaddr 0x5000",
            f"  pgd[0] at {root:#x} = 0x0  absent",
            f"not mapped: pgd[0] not present: vaddr 0x5000, entry 0x0 at paddr {root:#x}",
        ]

    async def test_unreadable_table(self) -> None:
        """A table that the image lacks is said to be unreadable."""
        made = MadeKernel()
        kernel = await made.open()
        made.image.lost.add((made.tables.root >> 12) + 2)

        shown = await translate(await made.open(), made.image, UTSNAME)

        assert kernel.warnings == []
        assert shown.lines()[-2].endswith("= unreadable  unreadable")

    async def test_non_canonical(self) -> None:
        """An address that can't be has no steps, and says why."""
        made = MadeKernel()

        shown = await translate(await made.open(), made.image, 1 << 60)

        assert shown.lines()[1:] == [f"not mapped: {shown.walk.problem}"]
        assert "not canonical for 48 bits" in shown.lines()[1]


class TestJson:
    async def test_found(self) -> None:
        """Everything the text says is there for programs, addresses as text."""
        made = MadeKernel()
        kernel = await made.open()

        answer = json.loads(json.dumps((await translate(kernel, made.image, UTSNAME)).as_dict()))

        paddr = PHYS_BASE + UTSNAME - TEXT_START
        assert answer["vaddr"] == hex(UTSNAME)
        assert answer["paddr"] == hex(paddr)
        assert answer["pfn"] == paddr >> 12
        assert answer["page"] == "in the image"
        assert answer["problem"] is None
        assert [step["level"] for step in answer["steps"]] == ["pgd", "pud", "pmd"]
        assert answer["steps"][-1]["span_bytes"] == 2 << 20
        assert answer["steps"][-1]["kind"] == "leaf"

    async def test_not_found(self) -> None:
        """What is not there is null, and the problem is told."""
        made = MadeKernel()

        answer = (await translate(await made.open(), made.image, 0)).as_dict()

        assert (answer["paddr"], answer["pfn"], answer["page"]) == (None, None, None)
        assert "not present" in answer["problem"]
        assert answer["steps"][0]["target"] is None
