"""Pass 1 from end to end, on images whose builder knows what must come out."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import anyio
import numpy as np
import pytest

from pipeline.errors import DumpError, MissingInfoError, UsageError
from pipeline.flow.channel import Channel
from pipeline.memory.bitmap import BLOCK_PAGES
from stages.demo.build import DemoFacts
from stages.demo.kinds import PageKind
from stages.demo.memory import SECTION_PAGES
from stages.filter.memory_model import MemoryModel
from stages.filter.stage import EndOfFilter, FilterResult, FilterStage, filter_image
from stages.filter.sweep import SectionVerdict
from stages.reader.image import Image
from stages.reader.probe import open_image
from tests.unit.filter.conftest import DemoMaker, DemoOptions
from tests.unit.filter.opening import bits_of, open_demo, patched, section_paddr, without_tail

LEVELS = (0, 1, 2, 4, 8, 16, 31)
VARIANTS: tuple[DemoOptions, ...] = (
    {"kernel": "5.10"},
    {"kernel": "6.1"},
    {"kernel": "6.6"},
    {"kernel": "6.12"},
    {"kernel": "7.1"},
    {"kernel": "7.1", "levels": 5, "small_memmap_pages": True},
    {"kernel": "7.1", "preinit_section": True},
    {"memory_model": "sparse_classic"},
    {"memory_model": "flat"},
    {"mem_section_is_pointer": True},
    {"small_memmap_pages": True},
    {"device_rom": True},
    {"kaslr": False},
    {"n_mib": 512, "kernel": "6.12", "seed": 3},
)


def assert_balanced(image: Image, result: FilterResult) -> None:
    """Every page is somewhere, once."""
    n_ram = image.ram.clip(0, result.max_mapnr).n_pages
    n_excluded = sum(result.counts.values())
    assert n_ram == result.ram.count()
    assert n_ram == result.kept.count() + n_excluded + result.n_missing


async def filtered(
    path: Path, level: int, replaced: Mapping[str, str | None] | None = None
) -> FilterResult:
    image, kernel = await open_demo(path, replaced)
    try:
        result = await filter_image(image, kernel, level)
        assert_balanced(image, result)
        return result
    finally:
        image.close()


def nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {label: count for label, count in counts.items() if count}


class TestAgainstTheBuilder:
    @pytest.mark.parametrize("options", VARIANTS, ids=repr)
    async def test_page_sets_and_counts(self, demo: DemoMaker, options: DemoOptions) -> None:
        """Exactly the pages that the builder says, under the classes that he says."""
        facts = demo(**options)
        for level in LEVELS:
            result = await filtered(facts.path, level)

            assert result.max_mapnr == facts.max_mapnr
            assert np.array_equal(bits_of(result.ram), facts.ram)
            assert np.array_equal(bits_of(result.kept), facts.kept(level))
            assert nonzero(result.counts) == facts.counts(level)

    @pytest.mark.parametrize("window_bytes", [1, 64 << 10, 1 << 20, 1 << 30])
    async def test_windows_of_any_size(self, demo: DemoMaker, window_bytes: int) -> None:
        """Runs larger than a window are carried on."""
        facts = demo()
        image, kernel = await open_demo(facts.path)
        result = await filter_image(image, kernel, 31, window_bytes=window_bytes)
        image.close()

        assert np.array_equal(bits_of(result.kept), facts.kept(31))
        assert nonzero(result.counts) == facts.counts(31)

    async def test_warns_of_absurd_orders_only(self, demo: DemoMaker) -> None:
        """The demo has eight; the kernel's own count of free pages agrees."""
        result = await filtered(demo().path, 31)

        assert result.warnings == ["kept for an absurd order: 8 free blocks"]


class TestLevels:
    @pytest.mark.parametrize("level", [-1, 32, 1000])
    async def test_outside_the_range(self, demo: DemoMaker, level: int) -> None:
        """Five bits there are."""
        with pytest.raises(UsageError, match="0 to 31"):
            await filtered(demo().path, level)

    @pytest.mark.parametrize("level", [0, 1])
    async def test_low_levels_need_no_kernel(self, demo: DemoMaker, level: int) -> None:
        """Without VMCOREINFO everything saved is kept."""
        facts = demo(device_rom=True)
        image = open_image(str(facts.path))
        result = await filter_image(image, None, level)
        image.close()

        assert result.max_mapnr == image.max_mapnr
        assert result.kept.count() == image.saved.n_pages == result.n_without
        assert result.level == level

    @pytest.mark.parametrize("level", [2, 3, 16, 31])
    async def test_other_levels_need_one(self, demo: DemoMaker, level: int) -> None:
        """The error says what is missing and for which level."""
        image = open_image(str(demo().path))
        with pytest.raises(MissingInfoError, match=f"VMCOREINFO.*level {level}"):
            await filter_image(image, None, level)
        image.close()

    async def test_low_levels_survive_a_damaged_memory_model(self, demo: DemoMaker) -> None:
        """A dump of everything is better than none; higher levels fail."""
        broken = {"SYMBOL(mem_section)": "ffff800000000000"}
        result = await filtered(demo().path, 1, broken)

        assert result.kept.count() == result.ram.count()
        assert len(result.warnings) == 1
        assert "mem_section" in result.warnings[0]
        with pytest.raises(DumpError, match="mem_section"):
            await filtered(demo().path, 2, broken)

    async def test_no_pass_without_need(self, demo: DemoMaker) -> None:
        """Without PG_hwpoison nobody looks for offline pages at level 0, as in makedumpfile."""
        facts = demo()
        no_hwpoison = {"NUMBER(PG_hwpoison)": None}

        assert (await filtered(facts.path, 0, no_hwpoison)).counts["offline"] == 0
        assert (await filtered(facts.path, 2, no_hwpoison)).counts["offline"] == 4

    async def test_says_what_cannot_be_told_apart(self, demo: DemoMaker) -> None:
        """Free pages are kept, and the user reads why."""
        facts = demo()
        result = await filtered(facts.path, 31, {"LENGTH(zone.free_area)": None})

        assert bits_of(result.kept)[facts.kinds == PageKind.FREE].all()
        assert any("free" in text and "kept" in text for text in result.warnings)


class TestDamage:
    async def test_unmapped_struct_pages_keep_their_pages(
        self, demo: DemoMaker, tmp_path: Path
    ) -> None:
        """Where makedumpfile gives up, the pages are kept, counted, and the rest is filtered."""
        facts = demo()
        path = patched(facts, tmp_path / "image", _unmap_memmap(facts, section=2))
        result = await filtered(path, 31)

        wanted = facts.kept(31)
        wanted[2 * SECTION_PAGES :] = facts.ram[2 * SECTION_PAGES :]
        n_unknown = int(facts.ram[2 * SECTION_PAGES :].sum())
        assert np.array_equal(bits_of(result.kept), wanted)
        assert result.n_unknown == n_unknown
        assert any(str(n_unknown) in text for text in result.warnings)

    async def test_random_struct_pages(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Noise gives some answer, with books that balance."""
        facts = demo(kernel="7.1")
        rng = np.random.default_rng(7)
        at = facts.addresses.memmap_paddr(2 * SECTION_PAGES)
        path = patched(facts, tmp_path / "image", {at: rng.bytes(2 << 20)})
        for level in (0, 8, 16, 31):
            await filtered(path, level)

    async def test_memmap_outside_the_image(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Struct pages that are mapped, but not saved, are unknown too."""
        facts = demo()
        writes = {
            paddr: struct.pack("<Q", 0x7000_0000 | 0x80000000000000E3)
            for paddr in _unmap_memmap(facts, section=2)
        }
        result = await filtered(patched(facts, tmp_path / "image", writes), 31)

        assert result.n_unknown == int(facts.ram[2 * SECTION_PAGES :].sum())

    async def test_free_count_that_cannot_be(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Wrong struct pages, or a wrong reading of them, show in the zones' counters."""
        facts = demo()
        node = facts.symbols["node_data"] - facts.addresses.text_vaddr
        node += facts.addresses.kernel_pfn * 4096
        with facts.path.open("rb") as file:
            file.seek(facts.addresses.file_off(node))
            pgdat = struct.unpack("<Q", file.read(8))[0] - facts.addresses.page_offset
        writes = {pgdat + 1536 + 1344: struct.pack("<q", 100)}
        result = await filtered(patched(facts, tmp_path / "image", writes), 31)

        assert any("counters say 100" in text for text in result.warnings)

    async def test_kernel_that_would_be_left_out(self, demo: DemoMaker) -> None:
        """Struct pages that are misread show in the pages where the kernel itself is."""
        facts = demo()
        right = await filtered(facts.path, 31)
        wrong = await filtered(facts.path, 31, {"OFFSET(page.mapping)": "48"})

        assert not any("kernel's own" in text for text in right.warnings)
        assert any("kernel's own" in text and "init_uts_ns" in text for text in wrong.warnings)

    async def test_kernel_that_would_be_cut_off(
        self, demo: DemoMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sections that are not found make memory end before the kernel does."""
        facts = demo()
        end = facts.addresses.kernel_pfn
        monkeypatch.setattr(MemoryModel, "lowered", lambda _model, _max_mapnr: end)
        result = await filtered(facts.path, 31)

        assert any("kernel's own" in text and "init_uts_ns" in text for text in result.warnings)

    @pytest.mark.parametrize(
        "line",
        [
            ("NUMBER(NR_FREE_PAGES)", "100000000"),
            ("SYMBOL(node_data)", "ffff800000000000"),
            ("LENGTH(node_data)", "99999999"),
            ("SIZE(zone)", "-1"),
            ("OFFSET(pglist_data.nr_zones)", "-8"),
        ],
    )
    async def test_counters_that_cannot_be_found(
        self, demo: DemoMaker, line: tuple[str, str]
    ) -> None:
        """The second opinion is optional: no error, and no doubt about the filter."""
        result = await filtered(demo().path, 16, {line[0]: line[1]})

        assert not any("counters" in text for text in result.warnings)


def _unmap_memmap(facts: DemoFacts, section: int) -> dict[int, bytes]:
    """Writes that clear the 2 MiB leaf under the section's struct pages."""
    leaf = facts.addresses.memmap_paddr(section * SECTION_PAGES)
    wanted = np.uint64(leaf | 0x80000000000000E3)
    heap = facts.addresses.heap_pfn * 4096
    with facts.path.open("rb") as file:
        file.seek(facts.addresses.file_off(heap))
        words = np.frombuffer(file.read(64 * 4096), dtype="<u8")
    # The direct map has a leaf for this memory, too: the memmap's is alone with one other.
    found = [int(index) for index in np.flatnonzero(words == wanted)]
    alone = [index for index in found if np.count_nonzero(_table_of(words, index)) <= 2]
    assert len(alone) == 1
    return {heap + alone[0] * 8: bytes(8)}


def _table_of(words: np.ndarray, index: int) -> np.ndarray:
    return words[index // 512 * 512 :][:512]


class TestRefiltering:
    async def test_missing_pages_are_counted_apart(self, demo: DemoMaker, tmp_path: Path) -> None:
        """What the source lacks is neither kept nor left out by us: the books say missing."""
        facts = demo()
        result = await filtered(without_tail(facts, tmp_path / "image", 3000), 31)

        wanted = facts.kept(31)
        wanted[-3000:] = False
        assert np.array_equal(bits_of(result.kept), wanted)
        assert np.array_equal(bits_of(result.ram), facts.ram)
        assert result.n_missing == 3000

    @pytest.mark.parametrize(
        ("kind", "level"),
        [(PageKind.HUGETLB, 8), (PageKind.THP, 8), (PageKind.FREE, 16), (PageKind.LARGE_FOLIO, 2)],
    )
    async def test_heads_that_are_missing_decide_all_the_same(
        self, demo: DemoMaker, kind: PageKind, level: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An ELF dump lacks zero pages; a huge page of which the first one was goes as a whole."""
        facts = demo()
        image, kernel = await open_demo(facts.path)
        heads = np.flatnonzero(np.diff(facts.kinds == kind, prepend=False))[::2]
        saved = image.saved_bitmap()
        for head in heads.tolist():
            saved.clear_range(head, head + 1)
        monkeypatch.setattr(image, "saved_bitmap", saved.copy)
        result = await filter_image(image, kernel, level)
        image.close()

        wanted = facts.kept(level)
        wanted[heads] = False
        assert len(heads)
        assert result.n_missing == len(heads)
        assert np.array_equal(bits_of(result.kept), wanted)

    async def test_level_of_the_source_is_added(self, demo: DemoMaker) -> None:
        """The header of the new dump must say what it lacks."""
        image, kernel = await open_demo(demo().path)
        image.info.dump_level = 17
        result = await filter_image(image, kernel, 8)
        image.close()

        assert result.level == 25


class Stuck:
    """An outbox that takes one item and then no more."""

    def __init__(self) -> None:
        self.items: list[SectionVerdict | EndOfFilter] = []
        self.has_one = anyio.Event()

    async def send(self, item: SectionVerdict | EndOfFilter) -> None:
        self.items.append(item)
        self.has_one.set()
        await anyio.sleep_forever()


class TestAsAStage:
    async def test_verdicts_come_in_order_and_add_up(self, demo: DemoMaker) -> None:
        """One for each block with saved pages, then the end, which has it all."""
        facts = demo(device_rom=True)
        image, kernel = await open_demo(facts.path)
        channel: Channel[SectionVerdict | EndOfFilter] = Channel("filter", 1 << 30)
        await FilterStage(image, kernel, 31).run(channel)
        channel.close_sender()
        items = [item async for item in channel]
        image.close()

        verdicts = [item for item in items if isinstance(item, SectionVerdict)]
        assert [verdict.index for verdict in verdicts] == [0, 2]
        assert isinstance(items[-1], EndOfFilter)
        assert len(items) == 3
        kept = np.concatenate([verdict.kept for verdict in verdicts])
        wanted = facts.kept(31)
        assert np.array_equal(kept[:BLOCK_PAGES], wanted[:BLOCK_PAGES])
        assert items[-1].result.kept.count() == kept.sum() == wanted.sum()

    async def test_waits_for_its_receiver_and_can_be_cancelled_there(self, demo: DemoMaker) -> None:
        """A receiver that takes its time stops the filter; cancelled, it leaves nothing open."""
        image, kernel = await open_demo(demo().path)
        stuck = Stuck()
        async with anyio.create_task_group() as group:
            group.start_soon(FilterStage(image, kernel, 31).run, stuck)
            with anyio.fail_after(30):
                await stuck.has_one.wait()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        image.close()

        assert [type(item) for item in stuck.items] == [SectionVerdict]

    async def test_receiver_that_is_gone(self, demo: DemoMaker) -> None:
        """The stage does not go on for nobody, nor hide that."""
        image, kernel = await open_demo(demo().path)
        channel: Channel[SectionVerdict | EndOfFilter] = Channel("filter", 1)
        channel.close_receiver()
        with pytest.raises(anyio.BrokenResourceError):
            await FilterStage(image, kernel, 31).run(channel)
        image.close()

    async def test_blocks_without_struct_pages_have_verdicts_too(
        self, demo: DemoMaker, tmp_path: Path
    ) -> None:
        """A section that is not present keeps its pages, in its place in the order."""
        facts = demo()
        section = section_paddr(facts)
        absent = struct.pack("<Q", facts.addresses.vmemmap_start | 0b1110)
        path = patched(facts, tmp_path / "image", {section: absent})
        image, kernel = await open_demo(path)
        channel: Channel[SectionVerdict | EndOfFilter] = Channel("filter", 1 << 30)
        await FilterStage(image, kernel, 31).run(channel)
        channel.close_sender()
        first, second, end = [item async for item in channel]
        image.close()

        assert isinstance(first, SectionVerdict)
        assert isinstance(second, SectionVerdict)
        assert isinstance(end, EndOfFilter)
        assert (first.index, second.index) == (0, 2)
        n_ram = int(facts.ram[:SECTION_PAGES].sum())
        assert first.n_without == first.kept.sum() == n_ram == end.result.n_without
        assert np.array_equal(first.kept, facts.ram[:SECTION_PAGES])

    async def test_sections_beyond_the_kernels_own_limit(self, demo: DemoMaker) -> None:
        """Two sections fit 28 bits: max_mapnr is cut before the third."""
        facts = demo()
        result = await filtered(
            facts.path, 31, {"NUMBER(MAX_PHYSMEM_BITS)": "28", "LENGTH(mem_section)": "1"}
        )

        assert result.max_mapnr == SECTION_PAGES
        assert result.kept.count() == facts.kept(31)[:SECTION_PAGES].sum()
