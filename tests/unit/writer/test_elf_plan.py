"""The plan of an ELF dump: loads, room for segments, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from pipeline.errors import UnsupportedError
from pipeline.flow.items import HeadOrder
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from pipeline.memory.extents import ExtentSet
from pipeline.obs.counters import RunCounters
from stages.filter.stage import FilterResult
from stages.formats.elf import ELF64_LE, identify
from stages.formats.notes import summarize_notes
from stages.reader.image import Image, LoadSegment
from stages.reader.probe import open_image
from stages.writer import elf_plan
from stages.writer.elf_plan import MAX_LOADS, plan_elf
from stages.writer.elf_segments import Load
from stages.writer.elf_stage import ElfWriter
from tests.support.captured_log import captured_log
from tests.support.kdump_writer import KdumpWriter, utsname
from tests.support.memory_image import MemoryImage
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described, pack_note, prstatus


def chosen(kept: PageBitmap, level: int = 31) -> FilterResult:
    return FilterResult(
        level=level,
        ram=kept,
        kept=kept,
        max_mapnr=kept.n_pages,
        counts={},
        n_missing=0,
        n_unknown=0,
        n_without=0,
        memory_model="none",
        warnings=[],
    )


def bitmap(pairs: list[tuple[int, int]], n_pages: int) -> PageBitmap:
    return PageBitmap.from_extents(ExtentSet.from_pairs(pairs), n_pages)


def plan(image: Any, kept: PageBitmap, level: int = 31, kernel: Any = None) -> ElfWriter:
    async def go() -> ElfWriter:
        return await plan_elf(
            image,
            kernel,
            chosen(kept, level),
            head_order=HeadOrder.BOTH,
            missing_as_zero=True,
            counters=RunCounters(),
        )

    return anyio.run(go)


@dataclass(frozen=True)
class DirectMap:
    """What a plan asks a kernel for: `start` maps `paddr`, modulo 2**64."""

    start: int | None
    paddr: int

    async def find_page_offset(self) -> int | None:
        return self.start

    @property
    def memory_start(self) -> int:
        return self.paddr % (1 << 64)


def memory_image(n_pages: int) -> MemoryImage:
    image = MemoryImage(n_pages)
    image.info.elf = (ELF64_LE, 62)
    image.info.loads = [LoadSegment(0, 0, n_pages * PAGE, 0, n_pages * PAGE)]
    return image


def scattered(n_runs: int) -> PageBitmap:
    """Every other page of as many as it takes."""
    kept = PageBitmap(2 * n_runs)
    for index in range(kept.n_blocks):
        bits = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        n_bits = min(2 * n_runs - index * BLOCK_PAGES, BLOCK_PAGES)
        bits[0:n_bits:2] = True
        kept.set_block(index, bits)
    return kept


class TestRoom:
    def test_for_what_is_known(self) -> None:
        """Without zero pages to leave out the number of runs is what is needed, and little more."""
        kept = bitmap([(0, 10), (20, 30), (40, 50)], 100)

        stage = plan(memory_image(100), kept, level=16)

        assert 4 <= stage.layout.n_slots <= 10
        assert (stage.n_spare, stage.leave_zeros_out) == (0, False)

    def test_for_zero_pages(self) -> None:
        """Every second page may be zero."""
        stage = plan(memory_image(1000), bitmap([(0, 1000)], 1000), level=1)

        assert stage.n_spare == 500
        assert stage.leave_zeros_out

    def test_stays_below_16_bits_where_it_can(self) -> None:
        """Numbers that e_phnum can't hold are for dumps that need them."""
        stage = plan(memory_image(1 << 20), bitmap([(0, 1 << 20)], 1 << 20), level=1)

        assert stage.layout.n_slots == 0xFFFE - 1
        assert not stage.layout.is_extended

    def test_goes_beyond_where_it_must(self) -> None:
        """What was left out stays out, whatever that takes."""
        stage = plan(memory_image(100_000), scattered(50_000))

        assert stage.layout.is_extended
        assert 50_000 < stage.layout.n_slots <= MAX_LOADS
        assert stage.n_spare > 0

    @pytest.mark.parametrize("n_runs", [MAX_LOADS + 1, 4 * MAX_LOADS])
    def test_refuses_what_nobody_reads(self, n_runs: int) -> None:
        """Excluded pages are not written to save segments: the kdump format is there for that."""
        with pytest.raises(UnsupportedError, match="the kdump format has no such limit"):
            plan(memory_image(2 * n_runs), scattered(n_runs))

    def test_counts_overlapping_loads(self) -> None:
        """Each load that describes a page has a segment for it."""
        image = memory_image(1000)
        image.info.loads *= 600

        with pytest.raises(UnsupportedError, match=r"an ELF dump would have [0-9]+ segments"):
            plan(image, scattered(500 * 2))


def test_segments_of_large_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs are cut for the sake of a dump that is cut short, but not into too many."""
    monkeypatch.setattr(elf_plan, "_LEAST_SEGMENT_BYTES", PAGE)

    stage = plan(memory_image(1 << 20), bitmap([(0, 1 << 20)], 1 << 20), level=0)

    assert stage.segment_bytes == (1 << 20) * PAGE // 1024
    assert stage.layout.n_slots < 2100


class TestSources:
    def open(self, folder: Path, writer: VmcoreWriter | KdumpWriter) -> Image:
        return open_image(str(writer.write(folder / "source")))

    def test_elf_gives_its_loads(self, tmp_path: Path) -> None:
        """As they are, but for those without a physical address and those without memory."""
        writer = VmcoreWriter().load(paddr=0x1000, data=described(1, 2), vaddr=0xFFFF_0000_0000)
        writer.load(paddr=None, data=b"x").load(paddr=0x9000, mem_size=0)
        image = self.open(tmp_path, writer)

        stage = plan(image, bitmap([(1, 3)], 3))

        assert stage.loads == [Load(0x1000, 0x3000, 0xFFFF_0000_0000)]

    def test_kdump_gives_its_memory(self, tmp_path: Path) -> None:
        """A dump has no loads: they are made of what it says existed."""
        writer = KdumpWriter(max_mapnr=100).page(3, described(3)).excluded(3, 20).excluded(50, 60)
        image = self.open(tmp_path, writer)

        stage = plan(image, bitmap([(3, 4)], 100))

        assert stage.loads == [
            Load(3 * PAGE, 20 * PAGE, 3 * PAGE), Load(50 * PAGE, 60 * PAGE, 50 * PAGE),
        ]  # fmt: skip
        assert (stage.layout.form, stage.layout.e_machine) == (ELF64_LE, 62)

    @pytest.mark.parametrize("paddr", [0, 0x40000000, 0x40000000 - (0x59A4 << 32)])
    def test_kdump_is_mapped_as_the_kernel_maps_it(self, tmp_path: Path, paddr: int) -> None:
        """The direct map starts with memory, or below it, and segments say where they lie in it."""
        first = 0x40000000 // PAGE
        writer = KdumpWriter(max_mapnr=first + 100).page(first + 3, described(3))
        image = self.open(tmp_path, writer)
        start = 0xFFFF000000000000

        stage = plan(
            image, bitmap([(first + 3, first + 4)], first + 100), kernel=DirectMap(start, paddr)
        )

        (load,) = stage.loads
        assert (load.start, load.stop) == ((first + 3) * PAGE, (first + 4) * PAGE)
        assert load.vaddr == (start - paddr + load.start) % (1 << 64)

    def test_kdump_whose_direct_map_is_not_found(self, tmp_path: Path) -> None:
        """Segments then say what they say without a kernel, and a warning tells."""
        image = self.open(tmp_path, KdumpWriter(max_mapnr=100).page(3, described(3)))

        with captured_log() as log:
            stage = plan(image, bitmap([(3, 4)], 100), kernel=DirectMap(None, 0))

        assert stage.loads == [Load(3 * PAGE, 4 * PAGE, 3 * PAGE)]
        assert "direct_map_not_found" in log.getvalue()

    def test_kdump_without_a_name_of_its_machine(self, tmp_path: Path) -> None:
        """What e_machine would be nobody can tell."""
        writer = KdumpWriter(max_mapnr=100, utsname=utsname(machine="")).page(3, described(3))

        with pytest.raises(UnsupportedError, match="a machine called 'unknown'"):
            plan(self.open(tmp_path, writer), bitmap([(3, 4)], 100))

    def test_what_was_erased_becomes_a_note(self, tmp_path: Path) -> None:
        """Beside the notes in a kdump, one of them in ELF."""
        writer = KdumpWriter(
            max_mapnr=100,
            notes=pack_note("CORE", 1, prstatus()),
            eraseinfo=b"erase secret size 8\n",
        )
        image = self.open(tmp_path, writer.page(3, described(3)))

        stage = plan(image, bitmap([(3, 4)], 100))

        facts = summarize_notes(stage.notes)
        assert (facts.eraseinfo, facts.nr_cpus) == (b"erase secret size 8\n", 1)

    def test_32_bits(self) -> None:
        """A 32-bit file ends at 4 GiB, and has the form of its source below that."""
        form = identify(b"\x7fELF\1\1".ljust(16, b"\0"))
        image = memory_image(1 << 20)
        image.info.elf = (form, 3)

        assert plan(image, bitmap([(0, 1 << 19)], 1 << 20)).layout.form == form
        with pytest.raises(UnsupportedError, match="a 32-bit ELF dump cannot hold"):
            plan(image, bitmap([(0, 1 << 20)], 1 << 20))

    @pytest.mark.parametrize("made_by", [None, "qemu"])
    def test_notes_of_qemu(self, made_by: str | None) -> None:
        """They decide how tails are read, so they decide how they are written."""
        image = memory_image(100)
        image.info.made_by = made_by

        assert plan(image, bitmap([(0, 10)], 100)).needs_pair == (made_by == "qemu")
