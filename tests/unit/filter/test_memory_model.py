"""Where struct pages are, for every memory model, and for images that lie about it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.errors import DumpError, FormatError, MissingInfoError
from stages.demo.build import DemoFacts, ModelName
from stages.filter.memory_model import MemmapRegion, MemoryModel, join_regions, read_memory_model
from stages.filter.page_layout import PageLayout
from tests.unit.filter.conftest import DemoMaker
from tests.unit.filter.opening import open_demo, patched, section_paddr

PAGE = 4096
SECTION = 32768


async def model_of(
    path: Path, replaced: Mapping[str, str | None] | None = None, max_mapnr: int | None = None
) -> MemoryModel:
    image, kernel = await open_demo(path, replaced)
    layout = PageLayout.from_vmcoreinfo(kernel.info)
    try:
        return await read_memory_model(kernel, layout, max_mapnr or image.max_mapnr)
    finally:
        image.close()


def expected(facts: DemoFacts, end: int) -> tuple[MemmapRegion, ...]:
    """The demo has sections 0 and 2, which do not touch."""
    base = facts.addresses.vmemmap_start
    sections = [(0, SECTION), (2 * SECTION, end)]
    return tuple(MemmapRegion(start, stop, base + start * 64) for start, stop in sections)


class TestModels:
    @pytest.mark.parametrize("pointer", [False, True])
    @pytest.mark.parametrize("levels", [4, 5])
    async def test_sparsemem_extreme(self, demo: DemoMaker, levels: int, pointer: bool) -> None:
        """Both readings of the symbol give the same sections."""
        facts = demo(levels=levels, mem_section_is_pointer=pointer)
        model = await model_of(facts.path)

        assert model.name == "sparsemem extreme"
        assert model.regions == expected(facts, facts.max_mapnr)

    @pytest.mark.parametrize("pointer", [False, True])
    async def test_classic_sparsemem(self, demo: DemoMaker, pointer: bool) -> None:
        """LENGTH(mem_section) that is not the number of roots says that there are none."""
        facts = demo(memory_model="sparse_classic", mem_section_is_pointer=pointer)
        model = await model_of(facts.path)

        assert model.name == "sparsemem"
        assert model.regions == expected(facts, facts.max_mapnr)

    async def test_flatmem(self, demo: DemoMaker) -> None:
        """One region from pfn 0 to the end."""
        facts = demo(memory_model="flat")
        model = await model_of(facts.path)

        start = facts.addresses.vmemmap_start
        assert model.regions == (MemmapRegion(0, facts.max_mapnr, start),)

    async def test_sixth_flag_bit_is_no_address(self, demo: DemoMaker) -> None:
        """SECTION_IS_VMEMMAP_PREINIT would move all struct pages by half of one."""
        facts = demo(kernel="7.1", preinit_section=True)
        model = await model_of(facts.path)

        assert model.regions == expected(facts, facts.max_mapnr)

    async def test_discontigmem(self, demo: DemoMaker) -> None:
        """The demo's node, told that it has a map of its own where its span is."""
        facts = demo()
        offsets = {
            "OFFSET(pglist_data.node_mem_map)": "4656",
            "OFFSET(pglist_data.node_start_pfn)": "4616",
        }
        node = facts.symbols["node_data"] - facts.addresses.text_vaddr
        node += facts.addresses.kernel_pfn * PAGE
        with facts.path.open("rb") as file:
            file.seek(facts.addresses.file_off(node))
            pgdat = struct.unpack("<Q", file.read(8))[0] - facts.addresses.page_offset
        path = facts.path.with_suffix(".discontig")
        writes = {pgdat + 4656: struct.pack("<Q", facts.addresses.vmemmap_start)}
        model = await model_of(patched(facts, path, writes), offsets)

        assert model.name == "discontigmem"
        assert model.regions == (MemmapRegion(0, facts.max_mapnr, facts.addresses.vmemmap_start),)

    async def test_no_model(self, demo: DemoMaker) -> None:
        """Without any of the keys the error names two of them."""
        with pytest.raises(MissingInfoError, match="mem_section"):
            await model_of(demo().path, {"SYMBOL(mem_section)": None})


class TestLowering:
    async def test_max_mapnr_is_cut_to_the_last_section(self, demo: DemoMaker) -> None:
        """A ROM at 4 GiB has no struct pages, and a dump no bits for it."""
        facts = demo(device_rom=True)
        model = await model_of(facts.path)

        assert model.lowered(0x100000) == facts.max_mapnr == 3 * SECTION
        assert model.lowered(1000) == 1000

    def test_nothing_to_cut_to(self) -> None:
        """Without regions max_mapnr stays."""
        assert MemoryModel("none", ()).lowered(77) == 77


class TestCorruptSections:
    async def test_absent_bit_makes_a_hole(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Hot-removed sections keep their encoded map (v5.3 to v5.5): only bit 0 counts."""
        facts = demo()
        at = section_paddr(facts)
        writes = {at: struct.pack("<Q", facts.addresses.vmemmap_start | 0b1110)}
        model = await model_of(patched(facts, tmp_path / "image", writes))

        assert model.regions == expected(facts, facts.max_mapnr)[1:]

    async def test_unreadable_root_is_said(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Its sections are kept, those of other roots are still filtered."""
        facts = demo()
        array = facts.symbols["mem_section"] - facts.addresses.page_offset
        writes = {array + 8: struct.pack("<Q", 0xFFFF_8000_0000_1000)}
        bits = {"NUMBER(SECTION_SIZE_BITS)": "27"}
        path = patched(facts, tmp_path / "image", writes)
        model = await model_of(path, bits, max_mapnr=256 * SECTION)

        assert len(model.regions) == 2
        assert any("mem_section of pfns 0x400000" in text for text in model.warnings)

    async def test_pages_of_an_unreadable_root_are_not_cut_off(
        self, demo: DemoMaker, tmp_path: Path
    ) -> None:
        """Where struct pages may be that were not found, memory does not end."""
        facts = demo()
        array = facts.symbols["mem_section"] - facts.addresses.page_offset
        path = patched(
            facts, tmp_path / "image", {array + 8: struct.pack("<Q", 0xFFFF_8000_0000_1000)}
        )
        model = await model_of(path, max_mapnr=256 * SECTION)

        assert model.end_pfn == 3 * SECTION
        assert model.lowered(256 * SECTION) == 256 * SECTION

    async def test_unreadable_node_is_not_cut_off(self, demo: DemoMaker, tmp_path: Path) -> None:
        """The same with DISCONTIGMEM, where not even the node's pfns are known."""
        facts = demo()
        table = facts.symbols["node_data"] - facts.addresses.text_vaddr
        table += facts.addresses.kernel_pfn * PAGE
        path = patched(
            facts, tmp_path / "image", {table + 8: struct.pack("<Q", 0xFFFF_8000_0000_1000)}
        )
        offsets = {
            "OFFSET(pglist_data.node_mem_map)": "4656",
            "OFFSET(pglist_data.node_start_pfn)": "4616",
        }
        model = await model_of(path, offsets)

        assert any("node at 0xffff800000001000" in text for text in model.warnings)
        assert model.lowered(facts.max_mapnr) == facts.max_mapnr

    @pytest.mark.parametrize(
        "root", [0, 1, 0x1000, 0xFFFF_FFFF_FFFF_FFF8, 0x8000_0000_0000_0000, 0xFFFF_8000_0000_0000]
    )
    async def test_only_root_is_nonsense(self, demo: DemoMaker, tmp_path: Path, root: int) -> None:
        """Both readings are tried and both failures are told."""
        facts = demo()
        array = facts.symbols["mem_section"] - facts.addresses.page_offset
        path = patched(facts, tmp_path / "image", {array: struct.pack("<Q", root)})

        with pytest.raises(FormatError, match=r"as pointer: .*as array: "):
            await model_of(path)

    async def test_roots_that_share_a_page(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Thousands of roots that point to one page would cost hours."""
        facts = demo()
        array = facts.symbols["mem_section"] - facts.addresses.page_offset
        root = struct.pack("<Q", section_paddr(facts) + facts.addresses.page_offset)
        path = patched(facts, tmp_path / "image", {array: root * 512})

        with pytest.raises(FormatError, match="roots that differ"):
            await model_of(path, max_mapnr=1 << 24)

    async def test_struct_pages_that_are_not_mapped(self, demo: DemoMaker, tmp_path: Path) -> None:
        """Sections whose struct pages are nowhere are not sections."""
        facts = demo()
        at = section_paddr(facts)
        bad = struct.pack("<Q", 0xFFFF_8111_0000_0000 | 0b1111)
        path = patched(facts, tmp_path / "image", {at: bad, at + 64: bad})

        with pytest.raises(FormatError, match="2 sections present, none of them mapped"):
            await model_of(path)


class TestLies:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("NUMBER(SECTION_SIZE_BITS)", "12"),
            ("NUMBER(SECTION_SIZE_BITS)", "63"),
            ("NUMBER(SECTION_SIZE_BITS)", "-1"),
            ("NUMBER(MAX_PHYSMEM_BITS)", "26"),
            ("NUMBER(MAX_PHYSMEM_BITS)", "65"),
            ("SIZE(mem_section)", "0"),
            ("SIZE(mem_section)", "8192"),
            ("OFFSET(mem_section.section_mem_map)", "25"),
            ("OFFSET(mem_section.section_mem_map)", "-8"),
        ],
    )
    async def test_geometry(self, demo: DemoMaker, key: str, value: str) -> None:
        """Numbers that no kernel has are refused by name before anything is read."""
        with pytest.raises(FormatError) as caught:
            await model_of(demo().path, {key: value})

        assert caught.value.field == key

    @pytest.mark.parametrize(
        ("key", "length"),
        [
            ("NUMBER(SECTION_SIZE_BITS)", None),
            ("NUMBER(SECTION_SIZE_BITS)", "1000"),
            ("SIZE(mem_section)", "2048"),
        ],
    )
    async def test_missing_geometry(self, demo: DemoMaker, key: str, length: str | None) -> None:
        """No constant of another kernel is put in its place, unless the number of roots fits it."""
        with pytest.raises(MissingInfoError):
            await model_of(demo().path, {key: None, "LENGTH(mem_section)": length})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("LENGTH(mem_section)", "4096"),
            ("LENGTH(mem_section)", "0"),
            ("SIZE(mem_section)", "64"),
            ("NUMBER(SECTION_SIZE_BITS)", "26"),
            ("NUMBER(MAX_PHYSMEM_BITS)", "40"),
        ],
    )
    async def test_numbers_that_contradict_each_other(
        self, demo: DemoMaker, key: str, value: str
    ) -> None:
        """One of them is wrong; by the wrong one most of memory would have no struct pages."""
        with pytest.raises(FormatError) as caught:
            await model_of(demo(levels=5).path, {key: value})

        assert caught.value.field == "LENGTH(mem_section)"

    async def test_too_many_sections(self, demo: DemoMaker) -> None:
        """A PT_LOAD at the end of the address space must not make us read for hours."""
        with pytest.raises(FormatError, match="number of sections"):
            await model_of(demo().path, {"NUMBER(MAX_PHYSMEM_BITS)": "64"}, max_mapnr=1 << 52)

    @pytest.mark.parametrize("symbol", ["1000", "ffffffffffffff00", "ffff800000000000"])
    @pytest.mark.parametrize("model", ["sparse_extreme", "sparse_classic", "flat"])
    async def test_symbol_points_nowhere(
        self, demo: DemoMaker, model: ModelName, symbol: str
    ) -> None:
        """An error of ours, whatever the address."""
        key = "SYMBOL(mem_map)" if model == "flat" else "SYMBOL(mem_section)"
        with pytest.raises(DumpError):
            await model_of(demo(memory_model=model).path, {key: symbol})


class TestOlderKernels:
    @pytest.mark.parametrize(
        "missing", ["NUMBER(SECTION_SIZE_BITS)", "NUMBER(MAX_PHYSMEM_BITS)", "both"]
    )
    @pytest.mark.parametrize("levels", [4, 5])
    async def test_numbers_that_were_not_exported(
        self, demo: DemoMaker, levels: int, missing: str
    ) -> None:
        """Up to v5.12 the length of mem_section tells how large sections and memory may be."""
        numbers = ("NUMBER(SECTION_SIZE_BITS)", "NUMBER(MAX_PHYSMEM_BITS)")
        gone = numbers if missing == "both" else (missing,)
        facts = demo(levels=levels)
        found = await model_of(facts.path, dict.fromkeys(gone))

        assert found.regions == expected(facts, facts.max_mapnr)


class TestJoining:
    def test_neighbours_with_one_array_become_one(self) -> None:
        """With vmemmap all sections of a machine do."""
        regions = [MemmapRegion(8, 16, 1000 + 8 * 64), MemmapRegion(0, 8, 1000)]

        assert join_regions(regions, 64, 100) == (MemmapRegion(0, 16, 1000),)

    def test_neighbours_with_arrays_of_their_own_stay(self) -> None:
        """As without vmemmap."""
        regions = [MemmapRegion(0, 8, 1000), MemmapRegion(8, 16, 5000)]

        assert join_regions(regions, 64, 100) == tuple(regions)

    def test_overlap_goes_to_the_first(self) -> None:
        """The second array is entered further in."""
        regions = [MemmapRegion(0, 8, 1000), MemmapRegion(4, 12, 9000), MemmapRegion(5, 7, 1)]

        assert join_regions(regions, 64, 100) == (
            MemmapRegion(0, 8, 1000),
            MemmapRegion(8, 12, 9000 + 4 * 64),
        )

    def test_regions_end_at_max_mapnr(self) -> None:
        """Beyond it the image has no pages."""
        regions = [MemmapRegion(0, 8, 1000), MemmapRegion(8, 16, None), MemmapRegion(90, 99, 7)]

        assert join_regions(regions, 64, 10) == (
            MemmapRegion(0, 8, 1000),
            MemmapRegion(8, 10, None),
        )
