"""The page cache: what it keeps, what it counts, and what it does not keep."""

from __future__ import annotations

from collections import OrderedDict

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.memory.addresses import ByteArray, PfnArray
from stages.cache.pages import PageCache
from stages.cache.policy import Lru
from stages.reader.image import ImageInfo
from tests.support.vmcore_writer import described
from tests.unit.translator.made_kernel import PAGE, MemoryImage

N_PAGES = 40


def image_of(lost: tuple[int, ...] = ()) -> MemoryImage:
    """Forty pages that tell their own addresses; some are lost."""
    pages = {pfn: bytearray(described(pfn)) for pfn in range(N_PAGES)}
    image = MemoryImage(pages, ImageInfo("elf", "x86_64", PAGE))
    image.lost.update(lost)
    return image


def pfns_of(*pfns: int) -> PfnArray:
    return np.array(pfns, dtype=np.uint64)


def content(*pfns: int) -> ByteArray:
    return np.frombuffer(b"".join(map(described, pfns)), dtype=np.uint8).reshape(-1, PAGE)


class _Model:
    """The plainest least-recently-used cache there is."""

    def __init__(self, capacity: int, lost: set[int]) -> None:
        self.kept: OrderedDict[int, None] = OrderedDict()
        self.capacity = capacity
        self.lost = lost
        self.hits = self.misses = 0

    def ask(self, pfns: list[int]) -> None:
        fresh = [pfn for pfn in sorted(set(pfns)) if pfn not in self.kept]
        self.misses += len(fresh)
        self.hits += len(pfns) - len(fresh)
        for pfn in sorted(set(pfns) - set(fresh)):
            self.kept.move_to_end(pfn)
        for pfn in fresh:
            if pfn not in self.lost:
                self.kept[pfn] = None
        while len(self.kept) > self.capacity:
            self.kept.popitem(last=False)


class TestContents:
    @given(
        capacity=st.integers(1, 12),
        lost=st.sets(st.integers(0, N_PAGES - 1), max_size=8),
        requests=st.lists(
            st.lists(st.integers(0, N_PAGES + 3), max_size=20), min_size=1, max_size=12
        ),
    )
    @settings(max_examples=100, deadline=None)
    def test_against_a_model(
        self, capacity: int, lost: set[int], requests: list[list[int]]
    ) -> None:
        """Contents, hits, misses and what is kept agree with a plain model, request by request."""
        image = image_of(tuple(lost))
        image.max_mapnr = N_PAGES
        cache = PageCache(image, capacity_bytes=capacity * PAGE, policy=Lru)
        model = _Model(capacity, lost | set(range(N_PAGES, N_PAGES + 4)))
        for request in requests:
            model.ask(request)

            rows, good = anyio.run(cache.get_many, pfns_of(*request))

            assert good.tolist() == [pfn not in model.lost for pfn in request]
            for pfn, row, usable in zip(request, rows, good, strict=True):
                assert row.tobytes() == (described(pfn) if usable else bytes(PAGE))
            assert (cache.stats.hits, cache.stats.misses) == (model.hits, model.misses)
            assert cache.n_bytes == len(model.kept) * PAGE
        kept = sorted(model.kept)
        anyio.run(cache.get_many, pfns_of(*kept))
        assert cache.stats.misses == model.misses

    async def test_rows_belong_to_the_caller(self) -> None:
        """Writing to what came out does not change what is kept."""
        cache = PageCache(image_of(), capacity_bytes=8 * PAGE)
        for _ in range(2):
            rows, _ = await cache.get_many(pfns_of(1, 2))
            rows[:] = 0xEE

        rows, _ = await cache.get_many(pfns_of(1, 2))

        assert np.array_equal(rows, content(1, 2))


class TestReads:
    async def test_one_read_for_all_misses(self) -> None:
        """Misses of a request go to the image together, ascending and once each."""
        image = image_of()
        cache = PageCache(image, capacity_bytes=16 * PAGE)
        await cache.get_many(pfns_of(5))

        await cache.get_many(pfns_of(9, 3, 5, 9, 4))

        assert image.reads == [[5], [3, 4, 9]]
        assert (cache.stats.reads, cache.stats.bytes_read) == (2, 4 * PAGE)
        assert (cache.stats.hits, cache.stats.misses) == (2, 4)

    async def test_lost_page_is_asked_for_again(self) -> None:
        """A page that could not be read is not kept as such: it may be there next time."""
        image = image_of(lost=(7,))
        cache = PageCache(image, capacity_bytes=8 * PAGE)
        _, first = await cache.get_many(pfns_of(7))
        image.lost.clear()

        rows, second = await cache.get_many(pfns_of(7))

        assert (first.tolist(), second.tolist()) == ([False], [True])
        assert np.array_equal(rows, content(7))

    async def test_error_leaves_what_was_kept(self) -> None:
        """A read that fails altogether changes nothing in the cache."""
        image = image_of()
        cache = PageCache(image, capacity_bytes=4 * PAGE)
        await cache.get_many(pfns_of(1, 2))
        working = image.pages
        image.pages = {9: bytearray(3)}

        with pytest.raises(ValueError, match="broadcast"):
            await cache.get_many(pfns_of(1, 9))
        image.pages = working
        rows, good = await cache.get_many(pfns_of(1, 2, 9))

        assert good.all()
        assert np.array_equal(rows, content(1, 2, 9))
        assert cache.n_bytes == 3 * PAGE


class TestCapacity:
    async def test_oldest_goes_first(self) -> None:
        """The page that was longest not asked for makes room; evictions are counted."""
        image = image_of()
        cache = PageCache(image, capacity_bytes=3 * PAGE, policy=Lru)
        for pfns in ((1, 2, 3), (1,), (4,)):
            await cache.get_many(pfns_of(*pfns))
        await cache.get_many(pfns_of(1, 3, 4))
        assert cache.stats.misses == 4

        await cache.get_many(pfns_of(2))

        assert (cache.stats.misses, cache.stats.evicted) == (5, 2)

    async def test_smaller_than_a_request(self) -> None:
        """A request larger than the cache is answered whole, and the cache stays in bounds."""
        cache = PageCache(image_of(), capacity_bytes=100)

        rows, good = await cache.get_many(pfns_of(*range(20)))

        assert good.all()
        assert np.array_equal(rows, content(*range(20)))
        assert cache.n_bytes == PAGE
        assert cache.stats.hit_ratio == 0
