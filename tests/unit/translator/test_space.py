"""The address space as a whole, and what it tells people about one address."""

from __future__ import annotations

import pytest

from pipeline.errors import FormatError, NonCanonicalError, NotPresentError, TranslationError
from pipeline.memory.addresses import AddrArray, BoolArray
from stages.arch.paging import EntryKind
from stages.arch.x86_64 import FOUR_LEVELS
from stages.translator import space as space_module
from stages.translator.ranges import PhysRun
from stages.translator.space import KernelSpace
from tests.support.pagetable_builder import DictPages, PageTableBuilder
from tests.unit.translator.mappings import ROOT, addresses

DIRECT = 0xFFFF888000000000


def built_space() -> tuple[KernelSpace, PageTableBuilder]:
    """A 1 GiB, a 2 MiB and a 4 KiB page."""
    builder = PageTableBuilder(FOUR_LEVELS, ROOT)
    builder.map(DIRECT, 0, 30)
    builder.map(DIRECT + (1 << 30), 0x40000000, 21)
    builder.map(DIRECT + (1 << 30) + (2 << 20), 0x12345000, 12)
    return KernelSpace(FOUR_LEVELS, ROOT, DictPages(builder.pages, page_size=4096)), builder


class TestExplain:
    async def test_steps_of_a_small_page(self) -> None:
        """Each step names its table, entry and flags, and the last leads to the page."""
        space, builder = built_space()
        vaddr = DIRECT + (1 << 30) + (2 << 20) + 0x678

        walk = await space.explain(vaddr)

        assert walk.paddr == 0x12345678
        assert [step.level for step in walk.steps] == ["pgd", "pud", "pmd", "pte"]
        assert [step.index for step in walk.steps] == [0x111, 1, 1, 0]
        assert walk.steps[0].entry_paddr == ROOT + 0x111 * 8
        assert all(builder.peek(step.entry_paddr) == step.entry for step in walk.steps)
        assert [step.span_bits for step in walk.steps] == [39, 30, 21, 12]
        assert walk.steps[-1].kind == EntryKind.LEAF
        assert walk.steps[-1].flags == ("PRESENT",)

    async def test_steps_of_a_large_page(self) -> None:
        """A 1 GiB leaf ends the walk early."""
        space, _ = built_space()

        walk = await space.explain(DIRECT + 0x12345)

        assert walk.paddr == 0x12345
        assert (len(walk.steps), walk.steps[-1].span_bits) == (2, 30)

    @pytest.mark.parametrize("vaddr", [1 << 47, -1, 1 << 64])
    async def test_non_canonical(self, vaddr: int) -> None:
        """An address that the form can't hold has no steps."""
        space, _ = built_space()

        walk = await space.explain(vaddr)

        assert walk.steps == ()
        assert isinstance(walk.problem, NonCanonicalError)

    async def test_not_present(self) -> None:
        """The problem carries table, index, entry and where it lies."""
        space, builder = built_space()
        builder.put([0x111, 2], 0x1234000)

        walk = await space.explain(DIRECT + (2 << 30))

        assert isinstance(walk.problem, NotPresentError)
        assert (walk.problem.level, walk.problem.index, walk.problem.entry) == ("pud", 2, 0x1234000)
        assert walk.problem.entry_paddr == walk.steps[-1].entry_paddr

    async def test_lost_table(self) -> None:
        """An entry in a table that is not in the image has no value."""
        space, builder = built_space()
        del builder.pages[max(builder.pages)]

        walk = await space.explain(DIRECT + (1 << 30) + (2 << 20))

        assert type(walk.problem) is TranslationError
        assert walk.problem.entry is None


class _AddOffset:
    """A step that moves memory, up to a limit."""

    def __init__(self, offset: int, limit: int) -> None:
        self.offset = offset
        self.limit = limit

    async def apply(self, paddrs: AddrArray) -> tuple[AddrArray, BoolArray]:
        return paddrs + addresses(self.offset), paddrs < self.limit


class TestSteps:
    async def test_chain_leads_to_the_top_table(self) -> None:
        """The top table is looked for where steps lead; entries are taken as they are."""
        _, builder = built_space()
        pages = DictPages(builder.pages, page_size=4096)
        steps = (_AddOffset(0x3000, 1 << 40), _AddOffset(0x1000, 1 << 40))
        space = KernelSpace(FOUR_LEVELS, ROOT - 0x4000, pages, steps)

        paddrs, good = await space.translate(addresses(DIRECT + 5))

        assert (paddrs.tolist(), good.tolist()) == ([5], [True])

    async def test_memory_that_does_not_exist(self) -> None:
        """A step's no is kept, and a top table without memory is refused."""
        _, builder = built_space()
        pages = DictPages(builder.pages, page_size=4096)
        space = KernelSpace(FOUR_LEVELS, ROOT, pages, (_AddOffset(0, ROOT),))

        _, good = await space.to_machine(addresses(0, ROOT))

        assert good.tolist() == [True, False]
        with pytest.raises(FormatError, match="top table"):
            await space.translate(addresses(DIRECT))


class TestRuns:
    async def test_list(self) -> None:
        """runs() is what iter_runs() gives."""
        space, _ = built_space()

        runs = await space.runs(DIRECT + 0x1000, (1 << 30) + (4 << 20))

        assert runs == [
            PhysRun(DIRECT + 0x1000, 0x1000, (1 << 30) - 0x1000 + (2 << 20)),
            PhysRun(DIRECT + (1 << 30) + (2 << 20), 0x12345000, 4096),
            PhysRun(DIRECT + (1 << 30) + (2 << 20) + 4096, None, (2 << 20)),
        ]

    async def test_no_range(self) -> None:
        """A range that is none has no runs."""
        space, _ = built_space()

        assert await space.runs(DIRECT, 0) == []

    async def test_more_than_a_list_may_hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A range in too many pieces is refused instead of gathered."""
        space, _ = built_space()
        monkeypatch.setattr(space_module, "MAX_RUNS", 2)

        with pytest.raises(FormatError, match="runs"):
            await space.runs(DIRECT, 2 << 30)
