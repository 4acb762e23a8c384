"""The demo image is a whole small kernel, and its facts are true of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.demo.build import DemoFacts, build_demo_image
from stages.demo.kernels import KERNELS
from stages.demo.kinds import PageKind
from stages.demo.memory import PAGE
from stages.demo.population import CHUNK_PAGES
from stages.filter.levels import EXCLUDED_CLASSES
from stages.inspect.dmesg import read_log
from stages.reader.probe import open_image
from tests.unit.filter.conftest import DemoMaker
from tests.unit.filter.opening import open_demo


class TestContents:
    @pytest.mark.parametrize("kernel", sorted(KERNELS))
    def test_every_kind_is_there(self, tmp_path: Path, kernel: str) -> None:
        """But for what a generation does not have."""
        facts = build_demo_image(tmp_path / "image", kernel=kernel)  # type: ignore[arg-type]
        kinds = {PageKind(int(kind)) for kind in np.unique(facts.kinds)}
        types = KERNELS[kernel].types
        lacking = set()
        if types.unaccepted is None:
            lacking.add(PageKind.UNACCEPTED)
        if types.slab is None:
            lacking.add(PageKind.OFFLINE_TAGGED)

        assert kinds == set(PageKind) - lacking

    def test_same_arguments_same_bytes(self, tmp_path: Path) -> None:
        """A bug report needs no more than the arguments; another seed moves everything."""
        first = build_demo_image(tmp_path / "1", seed=4)
        second = build_demo_image(tmp_path / "2", seed=4)
        other = build_demo_image(tmp_path / "3", seed=5)

        assert first.path.read_bytes() == second.path.read_bytes()
        assert first.addresses != other.addresses

    def test_pages_describe_themselves(self, demo: DemoMaker) -> None:
        """A page of an unused chunk holds its own address, text, or nothing; as the facts say."""
        facts = demo()
        image = open_image(str(facts.path))
        last = facts.addresses.end_pfn
        pfns = np.arange(last - CHUNK_PAGES, last, dtype=np.uint64)
        rows = np.empty((CHUNK_PAGES, PAGE), dtype=np.uint8)
        image.read_pages(pfns, rows)
        image.close()

        zero = ~rows.any(axis=1)
        assert np.array_equal(zero, facts.zero[-CHUNK_PAGES:])
        words = rows.view("<u8")[~zero]
        assert np.array_equal(words[:, 1], pfns[~zero] * np.uint64(PAGE) + np.uint64(8 | 1 << 63))

    def test_zero_pages_are_many(self, demo: DemoMaker) -> None:
        """Level 1 has something to do, in free pages and in others."""
        facts = demo()

        assert 1000 < facts.zero.sum() < facts.ram.sum() // 2
        assert facts.zero[facts.kinds == PageKind.KERNEL].any()


class TestKernel:
    @pytest.mark.parametrize("levels", [4, 5])
    @pytest.mark.parametrize("kaslr", [False, True])
    async def test_addresses_translate(self, demo: DemoMaker, levels: int, kaslr: bool) -> None:
        """Text, direct map, struct pages and vmalloc lie where the facts say."""
        facts = demo(levels=levels, kaslr=kaslr)
        where = facts.addresses
        wanted = {
            where.text_vaddr: where.kernel_pfn * PAGE,
            where.page_offset + 0x1234: 0x1234,
            where.vmemmap_start + 64: where.memmap_paddr(1),
            **{
                where.vmalloc_start + index * PAGE: pfn * PAGE
                for index, pfn in enumerate(facts.vmalloc_pfns)
            },
        }
        image, kernel = await open_demo(facts.path)
        vaddrs = np.array([*wanted, where.vmalloc_start - PAGE], dtype=np.uint64)
        paddrs, good = await kernel.translator.translate(vaddrs)
        image.close()

        assert good.tolist() == [True] * len(wanted) + [False]
        assert paddrs[:-1].tolist() == list(wanted.values())
        assert kernel.phys_base == where.phys_base
        assert await kernel.find_page_offset() == where.page_offset
        assert not kernel.warnings

    @pytest.mark.parametrize("generation", ["5.10", "6.12"])
    async def test_says_who_it_is(self, demo: DemoMaker, generation: str) -> None:
        """utsname, with the offset that v5.11 and later export, and without."""
        facts = demo(kernel="5.10") if generation == "5.10" else demo(kernel="6.12")
        image, kernel = await open_demo(facts.path)

        assert await kernel.utsname() == facts.utsname
        assert image.info.nr_cpus == facts.n_cpus
        image.close()

    async def test_log_reads_back(self, demo: DemoMaker) -> None:
        """All lines, though the ring of descriptors has wrapped."""
        facts = demo()
        image, kernel = await open_demo(facts.path)
        text = b"".join([piece async for piece in read_log(kernel)])
        image.close()

        lines = text.decode().splitlines()
        assert [line.split("] ")[-1] for line in lines] == [line.text for line in facts.log]


class TestFacts:
    def test_level_zero_loses_only_what_is_broken(self, demo: DemoMaker) -> None:
        """Hwpoison and offline."""
        facts = demo()
        lost = facts.ram & ~facts.kept(0)

        kinds = {PageKind.HWPOISON, PageKind.OFFLINE}
        assert {PageKind(int(kind)) for kind in np.unique(facts.kinds[lost])} == kinds

    def test_counts_are_what_is_not_kept(self, demo: DemoMaker) -> None:
        """For every level, under names that the filter has."""
        facts = demo(kernel="7.1")
        for level in range(32):
            counts = facts.counts(level)

            assert sum(counts.values()) == (facts.ram & ~facts.kept(level)).sum()
            assert set(counts) <= {page_class.label for page_class in EXCLUDED_CLASSES}


@pytest.mark.parametrize(
    "build",
    [
        lambda path: build_demo_image(path, n_mib=32),
        lambda path: build_demo_image(path, n_mib=65),
        lambda path: build_demo_image(path, n_mib=4096),
        lambda path: build_demo_image(path, levels=3),
        lambda path: build_demo_image(path, memory_model="flat", device_rom=True),
    ],
)
def test_arguments_that_cannot_be(build: Callable[[Path], DemoFacts], tmp_path: Path) -> None:
    """They are refused before anything is written."""
    with pytest.raises(ValueError, match=r"MiB|flat"):
        build(tmp_path / "image")
    assert not (tmp_path / "image").exists()
