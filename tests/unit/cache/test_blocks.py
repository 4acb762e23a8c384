"""The cache over a line: one read a block, errors, cancellation, eviction, prefetching."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from pipeline.memory.addresses import ByteArray
from stages.reader.remote_link import SourceError
from tests.unit.cache.line_image import BLOCK, BLOCK_PAGES, LineImage, cache_of, pfns_of, told

pytestmark = pytest.mark.anyio


def rows_of(rows: ByteArray) -> list[bytes]:
    return [row.tobytes() for row in rows]


async def until(what: Callable[[], object]) -> None:
    """Wait until `what` holds; five seconds at most."""
    with anyio.fail_after(5):
        while not what():  # noqa: ASYNC110  # what is waited for happens in another thread
            await anyio.sleep(0.005)


class TestReads:
    async def test_a_block_is_read_once_however_many_ask(self) -> None:
        """Ten tasks that want pages of one block wait for one read, and all get theirs."""
        image = LineImage()
        cache = cache_of(image)
        image.gate.clear()
        got: list[bytes] = []

        async def ask(pfn: int) -> None:
            rows, good = await cache.get_many(pfns_of(pfn))
            assert good.all()
            got.append(rows[0].tobytes())

        async with anyio.create_task_group() as group:
            for nth in range(10):
                group.start_soon(ask, 8 + nth % BLOCK_PAGES)
            await anyio.wait_all_tasks_blocked()
            await until(lambda: image.reads)
            image.gate.set()

        assert image.reads == [[8]]
        assert sorted(set(got)) == sorted(told(image, 8, 9, 10, 11))
        assert (cache.stats.misses, cache.stats.hits) == (1, 9)
        cache.close()

    async def test_misses_of_a_request_are_one_read(self) -> None:
        """Pages in any order, some repeated, come from one ascending read of their blocks."""
        image = LineImage(missing=frozenset({21}))
        cache = cache_of(image)

        rows, good = await cache.get_many(pfns_of(90, 20, 21, 20, 41))

        assert image.reads == [[20, 40, 88]]
        assert good.tolist() == [True, True, False, True, True]
        expected = [*told(image, 90, 20), bytes(4096), *told(image, 20, 41)]
        assert rows_of(rows) == expected
        cache.close()

    async def test_scan_passes_by(self) -> None:
        """A request for more than a quarter of the cache is answered, and pushes nothing out."""
        image = LineImage()
        cache = cache_of(image, blocks=8)
        await cache.get_many(pfns_of(1))

        rows, _ = await cache.get_many(pfns_of(*range(100, 140)))
        await cache.get_many(pfns_of(2))

        assert rows_of(rows) == told(image, *range(100, 140))
        assert len(image.reads) == 2
        assert cache.n_bytes == BLOCK
        cache.close()

    async def test_outside_the_image(self) -> None:
        """A pfn no image has is not good, and starts no read."""
        image = LineImage(64)
        cache = cache_of(image)

        _, good = await cache.get_many(pfns_of((1 << 52) - 1))

        assert not good.any()
        assert image.reads == []
        cache.close()


class TestTrouble:
    async def test_failure_wakes_all_and_poisons_nothing(self) -> None:
        """Everybody who waits gets the error; the next request reads anew."""
        image = LineImage()
        cache = cache_of(image)
        image.gate.clear()
        image.error = SourceError("the line is cut")
        failed: list[str] = []

        async def ask() -> None:
            try:
                await cache.get_many(pfns_of(8))
            except SourceError as error:
                failed.append(str(error))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
            await until(lambda: image.reads)
            image.gate.set()
        image.error = None
        rows, good = await cache.get_many(pfns_of(8))

        assert failed == ["the line is cut"] * 5
        assert good.all()
        assert rows_of(rows) == told(image, 8)
        assert image.reads == [[8], [8]]
        cache.close()

    async def test_cancelled_reader_leaves_the_others(self) -> None:
        """Whoever started the read goes away at once; who waits beside him gets his page."""
        image = LineImage()
        cache = cache_of(image)
        image.gate.clear()
        got: list[bytes] = []

        async def wait() -> None:
            rows, _ = await cache.get_many(pfns_of(9))
            got.append(rows[0].tobytes())

        async with anyio.create_task_group() as group:
            with anyio.move_on_after(0.05) as scope:
                await cache.get_many(pfns_of(8))
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            image.gate.set()

        assert scope.cancelled_caught
        assert got == told(image, 9)
        assert image.reads == [[8]]
        cache.close()

    async def test_eviction_under_pressure_loses_nothing(self) -> None:
        """Many tasks share a cache of two blocks, and each still gets its own pages."""
        image = LineImage()
        cache = cache_of(image, blocks=2)

        async def ask(first: int) -> None:
            for nth in range(20):
                pfn = (first * 37 + nth * 11) % 4000
                rows, good = await cache.get_many(pfns_of(pfn))
                assert good.all()
                assert rows_of(rows) == told(image, pfn)
                assert cache.n_bytes <= 2 * BLOCK

        async with anyio.create_task_group() as group:
            for first in range(20):
                group.start_soon(ask, first)
        cache.close()

    async def test_close_wakes_all_who_wait(self) -> None:
        """Reads that run are answered; those that were queued behind them end in an error."""
        image = LineImage()
        cache = cache_of(image, prefetch=False)
        image.gate.clear()
        answered: list[int] = []
        refused: list[str] = []

        async def ask(pfn: int) -> None:
            try:
                rows, _ = await cache.get_many(pfns_of(pfn))
            except SourceError as error:
                refused.append(str(error))
            else:
                assert rows_of(rows) == told(image, pfn)
                answered.append(pfn)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for nth in range(12):
                    group.start_soon(ask, nth * BLOCK_PAGES)
                await until(lambda: len(image.reads) == 8)
                cache.close()
                await until(lambda: len(refused) == 4)
                assert answered == []
                image.gate.set()

        assert len(image.reads) == len(answered) == 8
        assert refused == ["memory: the cache was closed"] * 4

    async def test_thread_that_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A read that could not be started is nobody's to wait for; the next one asks anew."""
        image = LineImage()
        cache = cache_of(image)

        def refuse(_pool: ThreadPoolExecutor) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "_adjust_thread_count", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await cache.get_many(pfns_of(8))
        with anyio.fail_after(5):
            rows, good = await cache.get_many(pfns_of(8))

        assert good.all()
        assert rows_of(rows) == told(image, 8)
        cache.close()

    async def test_close_ends_what_is_under_way(self) -> None:
        """Nothing new starts after `close`, and a request says so."""
        image = LineImage()
        cache = cache_of(image)
        cache.close()

        cache.hint(pfns_of(8))
        for pfns in (pfns_of(8), pfns_of(*range(0, 4000, BLOCK_PAGES))):
            with pytest.raises(SourceError, match="closed"):
                await cache.get_many(pfns)
        assert image.reads == []


class TestPrefetch:
    async def test_hinted_block_is_there_when_asked_for(self) -> None:
        """A hint reads in the background; the request that follows is a hit, and is counted."""
        image = LineImage()
        cache = cache_of(image)

        cache.hint(pfns_of(40))
        await until(lambda: image.reads == [[40]])
        await anyio.sleep(0.02)
        rows, _ = await cache.get_many(pfns_of(41))

        assert rows_of(rows) == told(image, 41)
        assert image.reads == [[40]]
        stats = cache.stats
        assert (stats.hits, stats.misses, stats.prefetched, stats.used) == (1, 0, 1, 1)
        cache.close()
        assert stats.wasted == 0

    async def test_full_queue_drops_and_counts(self) -> None:
        """A flood of hints is bounded in what is read, and what is dropped is counted."""
        image = LineImage(1 << 20)
        cache = cache_of(image)

        cache.hint(pfns_of(*range(0, 4000, BLOCK_PAGES)))
        cache.close()

        assert cache.stats.prefetched <= 16
        assert cache.stats.dropped >= 1000 - 16 - 64
        assert cache.stats.wasted == cache.stats.prefetched

    async def test_stride_is_followed(self) -> None:
        """Requests at equal steps are read ahead; most of them find their block there."""
        image = LineImage(1 << 16)
        cache = cache_of(image)

        for nth in range(60):
            await cache.get_many(pfns_of(nth * 40))
            await anyio.sleep(0.002)

        assert cache.stats.hits > 40
        assert cache.stats.used > 40
        cache.close()

    async def test_random_requests_are_not_followed(self) -> None:
        """Without a pattern nothing is read for nothing."""
        image = LineImage(1 << 16)
        cache = cache_of(image)

        for nth in range(40):
            await cache.get_many(pfns_of((nth * nth * 7919) % 60000))

        assert cache.stats.prefetched == 0
        cache.close()

    async def test_switched_off(self) -> None:
        """Without prefetching, hints and strides read nothing."""
        image = LineImage()
        cache = cache_of(image, prefetch=False)

        cache.hint(pfns_of(400))
        for nth in range(6):
            await cache.get_many(pfns_of(nth * 40))

        assert cache.stats.prefetched == 0
        assert len(image.reads) == 6
        cache.close()

    async def test_wrong_hints_shrink_the_room(self) -> None:
        """Prefetches that nobody uses are read less and less of."""
        image = LineImage(1 << 18)
        cache = cache_of(image, blocks=16)
        counts = []
        for turn in range(12):
            before = cache.stats.prefetched
            cache.hint(pfns_of(*range(100_000 + turn * 400, 100_400 + turn * 400, BLOCK_PAGES)))
            for nth in range(40):
                await cache.get_many(pfns_of((turn * 40 + nth) ** 2 % 90_000))
                await cache.get_many(pfns_of((turn * 40 + nth) ** 2 % 90_000))
            counts.append(cache.stats.prefetched - before)
        cache.close()

        assert cache.stats.wasted > 0
        assert sum(counts[6:]) < sum(counts[:6])
