"""The same pages as makedumpfile 1.7.8, on real kernels and on the demo image.

Where the two differ, the page must be of a kind that makedumpfile is known to get wrong:

* Tails of compound pages since v7.1: it does not know OFFSET(page.compound_info) and takes them for
  pages of their own. Their words look anonymous, so it leaves out slab and other kernel pages.
* Pages that somebody waits for since v6.10: without PG_slab in VMCOREINFO it uses the number that
  the bit once had, now PG_waiters, and takes an anonymous page for a slab page.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.memory.addresses import BoolArray
from stages.demo.build import KernelName, build_demo_image
from stages.filter.memory_model import read_memory_model
from stages.filter.page_layout import PageLayout
from stages.filter.stage import FilterResult, filter_image
from stages.reader.image import Image
from stages.translator.kernel import Kernel
from tests.lab.build import ensure_oracle_image
from tests.lab.catalog import IMAGES, Method
from tests.lab.oracles.kdump_pages import KdumpPages
from tests.lab.oracles.makedumpfile import makedumpfile_dump
from tests.unit.filter.opening import bits_of, open_demo

pytestmark = pytest.mark.lab
LEVELS = (0, 1, 2, 4, 8, 16, 31)
# makedumpfile reads images of its own architecture only.
SMALL = [image.name for image in IMAGES.values() if image.native and not image.bench]
QEMU_KDUMP = [name for name in SMALL if IMAGES[name].method is Method.QMP_KDUMP]
READABLE = [name for name in SMALL if name not in QEMU_KDUMP]
WAITERS = 1 << 7


async def struct_pages(kernel: Kernel, image: Image, pfns: np.ndarray) -> np.ndarray:
    """uint64[n, 8]: the struct pages of `pfns`, which all have one."""
    layout = PageLayout.from_vmcoreinfo(kernel.info)
    model = await read_memory_model(kernel, layout, image.max_mapnr)
    out: list[bytes] = []
    for pfn in pfns.tolist():
        region = next(r for r in model.regions if r.start_pfn <= pfn < r.stop_pfn)
        assert region.memmap_vaddr is not None
        at = region.memmap_vaddr + (pfn - region.start_pfn) * layout.size
        out.append(await kernel.read(at, layout.size))
    return np.frombuffer(b"".join(out), dtype="<u8").reshape(len(pfns), -1)


async def unexplained(
    kernel: Kernel, image: Image, ours: BoolArray, theirs: BoolArray
) -> list[str]:
    """Differing pages that are neither of the two known kinds."""
    pfns = np.flatnonzero(ours != theirs)
    if not len(pfns):
        return []
    rows = await struct_pages(kernel, image, pfns)
    is_new = kernel.info.offset("page.compound_info") is not None
    tails = (rows[:, 1] & 1 != 0) & ours[pfns] & is_new
    waited = (rows[:, 0] & WAITERS != 0) & (rows[:, 3] & 1 != 0)
    waited &= kernel.info.number("PAGE_SLAB_MAPCOUNT_VALUE") is not None
    return [f"pfn {pfn:#x}, ours {ours[pfn]}" for pfn in pfns[~tails & ~waited].tolist()]


async def compare(path: Path, level: int, work: Path) -> tuple[FilterResult, list[str], str]:
    """Our result, what cannot be explained, and how the bitmaps of existing pages differ."""
    dump = work / "theirs"
    # Its in-memory bitmap drops a page that RAM ends in the middle of; the one in a file does not.
    makedumpfile_dump(path, level, "lzo", dump, ("--work-dir", str(work)))
    image, kernel = await open_demo(path)
    try:
        result = await filter_image(image, kernel, level)
        with KdumpPages(dump) as theirs:
            assert theirs.max_mapnr == result.max_mapnr
            ram_differs = np.flatnonzero(theirs.exists != bits_of(result.ram))
            left = await unexplained(kernel, image, bits_of(result.kept), theirs.dumped)
        return result, left, str(ram_differs.tolist())
    finally:
        image.close()
        dump.unlink()


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("level", LEVELS)
async def test_real_kernels(name: str, level: int, tmp_path: Path) -> None:
    """Page for page, at every level, and no doubt about the count of free pages."""
    result, left, ram_differs = await compare(ensure_oracle_image(name), level, tmp_path)

    assert left == []
    assert ram_differs == "[]"
    assert result.n_unknown == 0
    assert result.warnings == []


@pytest.mark.parametrize(("first", "second"), [(0, 31), (1, 31), (16, 8), (31, 31)])
async def test_refiltering(first: int, second: int, tmp_path: Path) -> None:
    """A dump of a dump: the level of both, and the pages of both."""
    source = tmp_path / "source"
    makedumpfile_dump(ensure_oracle_image("k6.1-4l"), first, "lzo", source)
    result, left, ram_differs = await compare(source, second, tmp_path)

    assert left == []
    assert ram_differs == "[]"
    assert result.level == first | second
    assert result.warnings == []


@pytest.mark.parametrize("name", QEMU_KDUMP)
async def test_qemu_kdump(name: str) -> None:
    """makedumpfile cannot read these (their phys_base is wrong); the kernel's own count agrees."""
    image, kernel = await open_demo(ensure_oracle_image(name))
    result = await filter_image(image, kernel, 31)
    image.close()

    assert result.warnings == []
    assert min(result.counts[label] for label in ("cache", "user", "free")) > 1000


@pytest.mark.parametrize("generation", ["5.10", "6.1", "6.6", "6.12", "7.1"])
@pytest.mark.parametrize("level", [*LEVELS, 6, 24])
async def test_demo_image(generation: KernelName, level: int, tmp_path: Path) -> None:
    """The demo's traps are not only in our own head."""
    facts = build_demo_image(tmp_path / "image", kernel=generation)
    _, left, ram_differs = await compare(facts.path, level, tmp_path)

    assert left == []
    assert ram_differs == "[]"


async def test_demo_variants(tmp_path: Path) -> None:
    """Other memory models, other paging, a ROM without struct pages."""
    path = tmp_path / "image"
    build_demo_image(path, levels=5, small_memmap_pages=True)
    assert (await compare(path, 31, tmp_path))[1:] == ([], "[]")
    build_demo_image(path, memory_model="sparse_classic")
    assert (await compare(path, 31, tmp_path))[1:] == ([], "[]")
    build_demo_image(path, memory_model="flat")
    assert (await compare(path, 31, tmp_path))[1:] == ([], "[]")
    build_demo_image(path, device_rom=True, mem_section_is_pointer=True)
    assert (await compare(path, 31, tmp_path))[1:] == ([], "[]")
