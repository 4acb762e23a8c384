"""Who walks a kernel's arrays object by object, over a line: strides read ahead of him."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.layers import load_settings
from pipeline.run import assemble
from stages.cache.blocks import BlockCache
from stages.cache.pages import CacheOptions, CacheStats
from stages.demo.build import DemoFacts, build_demo_image
from stages.filter.prepare import prepare_filter
from stages.translator.kernel import open_kernel

pytestmark = pytest.mark.anyio

DELAY_MS = 5
N_MIB = 128
PER_BLOCK = 1024
"""Struct pages of 64 bytes in a block of 64 KiB."""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> DemoFacts:
    """A kernel with 32 blocks of struct pages."""
    return build_demo_image(tmp_path_factory.mktemp("demo") / "image", n_mib=N_MIB)


async def walk_frame_table(path: Path, *, prefetch: bool) -> tuple[CacheStats, bytes]:
    """Flags of every 32nd page, one read after the other, as drgn's `for_each_page` asks."""
    sets = [f"source.latency.per_request_ms={DELAY_MS}", f"cache.prefetch={prefetch}".lower()]
    image = assemble.open_source(str(path), load_settings(sets=sets).settings)
    link = image.link  # type: ignore[attr-defined]
    cache = BlockCache(image, link, CacheOptions(1 << 20, prefetch=prefetch))
    try:
        kernel = await open_kernel(image, cache)
        plan = await prepare_filter(image, kernel, 31)
        assert plan.layout is not None
        before = cache.stats.used
        flags = bytearray()
        for region in plan.model.regions:
            assert region.memmap_vaddr is not None
            for nth in range(0, region.stop_pfn - region.start_pfn, 32):
                flags += await kernel.read(region.memmap_vaddr + nth * plan.layout.size, 8)
        cache.stats.used -= before
        return cache.stats, bytes(flags)
    finally:
        cache.close()
        image.close()


async def test_frame_table_is_read_ahead(facts: DemoFacts) -> None:
    """Most blocks are there or under way when the walk comes to them; what is read is the same."""
    n_blocks = N_MIB * 256 // PER_BLOCK

    ahead, flags = await walk_frame_table(facts.path, prefetch=True)
    alone, same = await walk_frame_table(facts.path, prefetch=False)

    assert flags == same
    assert ahead.used > n_blocks * 0.7
    assert alone.used == 0
    assert ahead.misses < alone.misses - n_blocks * 0.7
