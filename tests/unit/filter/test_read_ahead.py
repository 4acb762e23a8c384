"""Pass 1 over a line: many reads under way, the same result, and no trace of it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.cache.pages import PageCache
from stages.filter.prepare import prepare_filter
from stages.filter.sanity import check_free_count, expect_free_count
from stages.filter.stage import FilterResult, filter_image
from stages.reader.image import Image
from stages.reader.probe import open_image
from stages.reader.remote_image import RemoteImage
from stages.reader.remote_link import Link, SourceError
from stages.translator.kernel import Kernel, open_kernel
from tests.unit.filter.conftest import DemoMaker, DemoOptions

pytestmark = pytest.mark.anyio

WINDOW_BYTES = 1 << 16
"""Small, so that a small image has windows enough to wait for each other."""


class Far(RemoteImage):
    """An image whose reads by the filter's threads are counted, and can be held or made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_image(str(path)), Link(max_in_flight=64, part_bytes=1 << 20))
        self.gate = threading.Event()
        self.gate.set()
        self.holds_heads = True
        self.fails_after: int | None = None
        self.n_reads = 0
        self.most_at_once = 0
        self._n_now = 0
        self._lock = threading.Lock()

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        if not threading.current_thread().name.startswith("filter"):
            return super().read_pages(pfns, out)  # of tables, in the loop's own thread
        with self._lock:
            self.n_reads += 1
        if len(pfns) > 1 and pfns[1] - pfns[0] > 1 and not self.holds_heads:
            return super().read_pages(pfns, out)
        with self._lock:
            self._n_now += 1
            self.most_at_once = max(self.most_at_once, self._n_now)
        try:
            assert self.gate.wait(20), "nobody opened the gate"
            if self.fails_after is not None and self.n_reads > self.fails_after:
                raise SourceError("the line is cut")
            return super().read_pages(pfns, out)
        finally:
            with self._lock:
                self._n_now -= 1


async def far(path: Path) -> tuple[Far, Kernel]:
    """The image, and its kernel through a cache that reads at once."""
    image = Far(path)
    return image, await open_kernel(image, PageCache(image, capacity_bytes=4 << 20))


async def near(path: Path, level: int) -> FilterResult:
    """What one worker finds."""
    image = open_image(str(path))
    kernel = await open_kernel(image, PageCache(image, capacity_bytes=4 << 20))
    try:
        return await filter_image(image, kernel, level)
    finally:
        image.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for other threads, ten seconds at most."""
    for _ in range(2000):
        if is_so():
            return
        await anyio.sleep(0.005)
    pytest.fail("it never came so far")


def filter_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("filter")]


@pytest.mark.parametrize(
    "options",
    [{}, {"small_memmap_pages": True}, {"kernel": "7.1", "n_mib": 256}, {"device_rom": True}],
)
@pytest.mark.parametrize("level", [8, 31])
@pytest.mark.parametrize("workers", [2, 5])
async def test_as_with_one_worker(
    demo: DemoMaker, options: DemoOptions, level: int, workers: int
) -> None:
    """Pages kept and counted are the same, whatever comes first."""
    path = demo(**options).path
    image, kernel = await far(path)

    found = await filter_image(image, kernel, level, window_bytes=WINDOW_BYTES, workers=workers)

    wanted = await near(path, level)
    assert found.counts == wanted.counts
    assert found.warnings == wanted.warnings
    kept, expected = (list(each.kept.iter_pfns()) for each in (found, wanted))
    assert [part.tolist() for part in kept] == [part.tolist() for part in expected]
    await until(lambda: not filter_threads())
    image.close()


async def test_held_windows_do_not_hold_the_heads_behind_them(demo: DemoMaker) -> None:
    """As many windows as there are workers are read at once, and all heads come meanwhile."""
    image, kernel = await far(demo(n_mib=512).path)
    image.gate.clear()
    image.holds_heads = False

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: filter_image(image, kernel, 31, window_bytes=1 << 17, workers=3))
        # 64 windows, the heads of 32 a read.
        await until(lambda: image.n_reads - image.most_at_once >= 2 and image.most_at_once >= 3)
        await anyio.sleep(0.05)
        assert image.most_at_once == 3
        image.gate.set()

    assert image.n_reads > 20
    image.close()


async def test_error_of_the_source_ends_it(demo: DemoMaker) -> None:
    """A line that is cut is the error, not pages without struct pages; no thread stays."""
    image, kernel = await far(demo().path)
    image.fails_after = 6

    with pytest.raises(SourceError, match="the line is cut"):
        await filter_image(image, kernel, 31, window_bytes=WINDOW_BYTES, workers=4)

    await until(lambda: not filter_threads())
    image.close()


async def test_cancelled_while_reads_are_under_way(demo: DemoMaker) -> None:
    """It does not wait for the reads that had begun, and those behind them are not made."""
    image, kernel = await far(demo().path)
    image.gate.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(
            lambda: filter_image(image, kernel, 31, window_bytes=WINDOW_BYTES, workers=2)
        )
        await until(lambda: image.n_reads > 0)
        group.cancel_scope.cancel()

    assert filter_threads()
    image.gate.set()
    await until(lambda: not filter_threads())
    assert image.n_reads <= 4
    image.close()


class Hinted(PageCache):
    """Notes what it is told to expect, and what is asked of it but tables."""

    def __init__(self, image: Image) -> None:
        super().__init__(image, capacity_bytes=4 << 20)
        self.hinted: set[int] = set()
        self.asked: set[int] = set()

    def hint(self, pfns: PfnArray) -> None:
        self.hinted.update(pfns.tolist())

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        self.asked.update(pfns.tolist())
        return await super().get_many(pfns)


async def test_last_question_is_prepared_first(demo: DemoMaker) -> None:
    """What the count of free pages is checked against is fetched while struct pages are read."""
    image = Far(demo().path)
    reader = Hinted(image)
    kernel = await open_kernel(image, reader)
    plan = await prepare_filter(image, kernel, 31)
    assert plan.layout is not None
    reader.hinted.clear()
    reader.asked.clear()

    await expect_free_count(kernel, plan.layout)
    told, reader.asked = reader.hinted, set()
    await check_free_count(kernel, plan.layout, 0, 1)

    node_data = await kernel.translator.translate(
        np.array([kernel.info.need_symbol("node_data", "a test")], dtype=np.uint64)
    )
    asked = reader.asked - {int(node_data[0][0]) // kernel.page_size}
    assert asked
    assert asked <= told
    image.close()
