"""Estimates: samples are fair, sums are right, and what can't be told is said."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.inspect.estimate import estimate
from stages.inspect.sample import RUN_PAGES, PageSet
from stages.sink.measure import TargetFacts, measure_target
from tests.support.memory_image import PAGE_SIZE, MemoryImage


def bitmap(*pairs: tuple[int, int], n_pages: int = 5 * BLOCK_PAGES) -> PageBitmap:
    return PageBitmap.from_extents(ExtentSet.from_pairs(list(pairs)), n_pages)


def test_all_runs_of_a_small_set_are_its_pages() -> None:
    """Asked for more runs than there are, every page of the difference comes once."""
    pages = PageSet(bitmap((10, 50), (BLOCK_PAGES - 8, BLOCK_PAGES + 30)), bitmap((20, 40)))

    picked = np.concatenate(pages.pick(1000, random.Random(1)))

    wanted = [*range(10, 20), *range(40, 50), *range(BLOCK_PAGES - 8, BLOCK_PAGES + 30)]
    assert pages.n_pages == len(wanted)
    assert set(picked.tolist()) <= set(wanted)
    # A run ends with its block, so the last few of a block's pages may be left out.
    assert len(picked) >= len(wanted) - RUN_PAGES
    assert len(set(picked.tolist())) == len(picked)


def test_samples_come_from_everywhere() -> None:
    """Over many draws each quarter of a set is picked about as often as the others."""
    pages = PageSet(bitmap((0, 4 * BLOCK_PAGES)))
    quarters = np.zeros(4, dtype=int)
    for seed in range(20):
        for pfns in pages.pick(100, random.Random(seed)):
            quarters[int(pfns[0]) // BLOCK_PAGES] += 1

    assert quarters.sum() == 2000
    assert quarters.min() > 400


def test_empty_set_has_no_samples() -> None:
    """A class without pages is no error."""
    assert PageSet(bitmap((0, 10)), bitmap((0, 10))).pick(5, random.Random(1)) == []


async def test_sizes_are_those_of_a_dump() -> None:
    """On an image that is read whole, stored pages are counted exactly: zero pages take none."""
    image = MemoryImage(4000, zero_every=4)

    found = await estimate(image, None, {"none": 0, "zstd": 1})

    (level,) = found.levels
    assert (level.level, level.n_pages) == (1, 4000)
    head = level.n_bytes["none"] - 3000 * PAGE_SIZE
    assert 4000 * 24 < head < 4000 * 24 + 10 * PAGE_SIZE
    assert level.n_bytes["zstd"] < level.n_bytes["none"] // 20
    assert level.n_bytes["elf"] == 3000 * PAGE_SIZE + 2000 * 56 + len(image.info.notes)
    assert found.n_sampled == 4000


async def test_uncertainty_covers_the_error() -> None:
    """A sampled size is within twice its stated uncertainty of the true one."""
    image = MemoryImage(60_000, zero_every=3)

    found = await estimate(image, None, {"none": 0})

    truth = 40_000 * PAGE_SIZE
    seen = found.levels[0].n_bytes["none"] - 60_000 * 24
    assert found.n_sampled == 256 * RUN_PAGES
    assert abs(seen - truth) / truth <= 2 * found.uncertainty + 0.01


async def test_without_a_kernel_only_simple_levels_are_listed() -> None:
    """Levels that need struct pages are left out, and the lines say why."""
    found = await estimate(MemoryImage(100), None, {"none": 0, "nocodec": 1})

    assert [one.level for one in found.levels] == [1]
    text = "\n".join(found.lines())
    assert "no VMCOREINFO" in text
    assert "not installed: nocodec" in text


async def test_times_follow_the_slower_of_link_and_codec() -> None:
    """With a measured speed the lines say how long the bytes take."""
    found = await estimate(MemoryImage(4000), None, {"none": 0})
    found.target = TargetFacts("s3://b/k", bytes_per_s=1e6)

    seconds = found.levels[0].n_bytes["none"] / 1e6
    elf = found.levels[0].n_bytes["elf"] / 1e6
    said = f"level 1: none {seconds:.0f} s, elf {elf:.0f} s with one CPU to compress"
    assert said in list(found.lines())


@pytest.mark.parametrize("name", ["new", "."])
async def test_free_space_of_a_path_is_told(tmp_path: Path, name: str) -> None:
    """A file that is not there yet has the room of its directory."""
    facts = await measure_target(str(tmp_path / name), None)  # type: ignore[arg-type]

    assert facts.free_bytes
    assert facts.bytes_per_s is None


async def test_unknown_room_is_said() -> None:
    """Where nothing can be told, that is what the line says."""
    facts = await measure_target("ssh://host/x", None)  # type: ignore[arg-type]

    assert list(facts.lines()) == ["ssh://host/x: neither speed nor room can be told beforehand"]
