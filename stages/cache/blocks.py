"""The page cache of images behind a line: blocks, one read of each at a time, and prefetching.

A miss reads a block: many pages cost as much as one. All misses of a request go out together, and
whoever wants a block that is on its way waits for the read that is under way. Reads run in
threads; nothing else here is touched by more than the event loop's thread::

    get_many ──▶ kept?  ──▶ copy
                 under way? ──▶ wait for that read, copy from it
                 else start one read for all that is left, wait, copy
    hint ──▶ queue ──▶ reads in the background, as many as the room allows

A waiter copies from the read's own buffer, so eviction cannot take a block away that somebody
waits for. A read that fails wakes all its waiters with the error, and leaves nothing behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import numpy as np

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.cache.block_read import BlockRead, Rest
from stages.cache.policy import S3Fifo
from stages.cache.prefetch import HintQueue, Room, StrideDetector
from stages.cache.stats import CacheStats
from stages.reader.image import Image
from stages.reader.remote_link import Link, SourceError

if TYPE_CHECKING:
    from stages.cache.pages import CacheOptions, TablePages
    from stages.cache.trace import TraceWriter

_THREADS: Final = 8
"""Reads under way; each is as many requests side by side as the line takes."""
_USES_AHEAD: Final = 3
"""What a prefetched block counts as: the most that the policy counts to."""
_HINTS_PER_BLOCK: Final = 4
"""Hints that wait, for each block of the largest room."""


class BlockCache:
    """A `PageReader` with prefetching; `close` ends what is under way in the background."""

    def __init__(self, image: Image, link: Link, options: CacheOptions) -> None:
        self.page_size = image.info.page_size
        self.stats = CacheStats()
        self.trace: TraceWriter | None = None
        self.tables: TablePages = _Tables(self)
        self._image = image
        self._link = link
        self._options = options
        self._per_block = max(options.block_bytes // self.page_size, 1)
        self._block_bytes = self._per_block * self.page_size
        self._n_keys = -(-image.max_mapnr // self._per_block)
        self._capacity = max(options.capacity_bytes // self._block_bytes, 1)
        self._policy = S3Fifo(self._capacity)
        self._rows = np.empty((self._capacity, self._per_block, self.page_size), dtype=np.uint8)
        self._good = np.zeros((self._capacity, self._per_block), dtype=np.bool_)
        self._row_of: dict[int, int] = {}
        self._under_way: dict[int, BlockRead] = {}
        self._finished: deque[tuple[BlockRead, bool]] = deque()
        self._unused: set[int] = set()
        most = max(options.window_bytes // self._block_bytes, 1)
        self._hints = HintQueue(_HINTS_PER_BLOCK * most)
        self._room = Room(2 * options.depth)
        self._strides = StrideDetector(options.depth)
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def n_bytes(self) -> int:
        return len(self._row_of) * self._block_bytes

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        return await self.get(pfns, preferred=False)

    async def get(self, pfns: PfnArray, *, preferred: bool) -> tuple[ByteArray, BoolArray]:
        """`get_many`; `preferred` pages are page tables."""
        if self.trace is not None:
            self.trace.add(pfns, preferred=preferred)
        self._absorb()
        rows = np.zeros((len(pfns), self.page_size), dtype=np.uint8)
        good = np.zeros(len(pfns), dtype=np.bool_)
        blocks, inside = np.divmod(pfns, np.uint64(self._per_block))
        keys, which = np.unique(blocks, return_inverse=True)
        wanted = keys.tolist()
        kept = np.array([self._row_of.get(key, -1) for key in wanted], dtype=np.intp)
        row = kept[which]
        here = row >= 0
        inside = inside.astype(np.intp)
        rows[here] = self._rows[row[here], inside[here]]
        good[here] = self._good[row[here], inside[here]]
        self._note_hits([key for key, at in zip(wanted, kept.tolist(), strict=True) if at >= 0])
        missing = [key for key, at in zip(wanted, kept.tolist(), strict=True) if at < 0]
        if not missing:
            self.stats.hits += len(pfns)
            return rows, good
        fresh = [key for key in missing if key not in self._under_way and key < self._n_keys]
        n_missed = int(np.isin(blocks, np.array(fresh, dtype=np.uint64)).sum()) if fresh else 0
        self.stats.misses += n_missed
        self.stats.hits += len(pfns) - n_missed
        rest = np.flatnonzero(~here)
        if len(fresh) > max(self._capacity // 4, 1):
            rows[rest], good[rest] = await self._read_past(pfns[rest])
        else:
            await self._read_blocks(
                fresh, missing, preferred, Rest(rest, blocks, inside, rows, good)
            )
        return rows, good

    def hint(self, pfns: PfnArray, *, preferred: bool = False) -> None:
        """Prefetch the blocks of `pfns` when there is room; drops what the queue does not take."""
        if not self._options.prefetch or self._closed or not len(pfns):
            return
        keys = dict.fromkeys((pfns // np.uint64(self._per_block)).tolist())
        self._add_hints(keys, preferred)
        self._pump()

    def close(self) -> None:
        """End prefetching; what nobody asked for is counted as wasted.

        Whoever waits for a read that was still queued gets a `SourceError`. Those that run are not
        waited for here, which may take as long as the line likes: they end by themselves, or when
        the image is closed.
        """
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._absorb()
        self.stats.wasted += len(self._unused)
        self._unused.clear()

    def _closed_error(self) -> SourceError:
        return SourceError(f"{self._image.path}: the cache was closed")

    async def _read_blocks(
        self, fresh: list[int], missing: list[int], preferred: bool, rest: Rest
    ) -> None:
        """Start a read of `fresh`, wait for all that is `missing`, and fill `rest`."""
        waits = {id(read): read for key in missing if (read := self._under_way.get(key))}
        for key in missing:
            if key in self._under_way and self._under_way[key].hinted:
                self._prove(key)
        if fresh:
            self._follow_stride(fresh)
            read = self._start(fresh, preferred, hinted=False)
            waits[id(read)] = read
            self._pump()  # hints of before travel beside it
        for read in waits.values():
            if not read.is_done:
                # A caller who is cancelled leaves the read to those who wait beside him.
                await anyio.to_thread.run_sync(read.wait, abandon_on_cancel=True)
        self._absorb()
        for read in waits.values():
            if read.error is not None:
                raise read.error
            rest.fill_from(read)
        self._pump()

    async def _read_past(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        """Pages of a request that would push out a quarter of the cache: as they are, not kept."""
        if self._closed:
            raise self._closed_error()
        order, inverse = np.unique(pfns, return_inverse=True)
        pages = np.empty((len(order), self.page_size), dtype=np.uint8)
        self._book_read(pages.nbytes)
        states = await anyio.to_thread.run_sync(
            self._image.read_pages, order, pages, abandon_on_cancel=True
        )
        good: BoolArray = states != PageState.MISSING
        pages[~good] = 0
        return pages[inverse], good[inverse]

    def _start(self, keys: list[int], preferred: bool, *, hinted: bool) -> BlockRead:
        if self._closed:
            raise self._closed_error()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache")
        read = BlockRead(self._image, sorted(keys), self._per_block, hinted=hinted)
        future = self._pool.submit(self._run, read, preferred)  # before anybody can wait for it
        future.add_done_callback(lambda ended: self._after(ended, read))
        for key in keys:
            self._under_way[key] = read
        self._book_read(len(keys) * self._block_bytes)
        return read

    def _after(self, ended: Future[None], read: BlockRead) -> None:
        if ended.cancelled():
            read.give_up(self._closed_error())

    def _book_read(self, n_bytes: int) -> None:
        self.stats.reads += 1
        self.stats.bytes_read += n_bytes

    def _run(self, read: BlockRead, preferred: bool) -> None:
        """In a thread: the read, and word of it to the loop's thread."""
        read.run()
        self._finished.append((read, preferred))

    def _absorb(self) -> None:
        """Take in what came since, in the loop's thread."""
        while self._finished:
            read, preferred = self._finished.popleft()
            for key in read.keys:
                self._under_way.pop(key, None)
                if read.error is None and key not in self._row_of:
                    self._keep(key, read, preferred)
                else:
                    self._unused.discard(key)

    def _keep(self, key: int, read: BlockRead, preferred: bool) -> None:
        victim = self._policy.admit(key, preferred=preferred or read.hinted)
        if read.hinted:
            # It must still be there when it is asked for, beside blocks that are done with but
            # were asked for often. How many such there are, and how many more, is the room's care.
            self._policy.touch([key] * _USES_AHEAD)
        row = len(self._row_of)
        if victim is not None:
            self.stats.evicted += 1
            row = self._row_of.pop(victim)
            if victim in self._unused:
                self._unused.discard(victim)
                self.stats.wasted += 1
                self._room.wasted()
        self._row_of[key] = row
        at = read.row_of[key]
        self._rows[row], self._good[row] = read.pages[at], read.good[at]

    def _note_hits(self, keys: list[int]) -> None:
        self._policy.touch(keys)
        proven = [key for key in keys if key in self._unused]
        for key in proven:
            self._prove(key)
        if len(proven) == 1:
            self._follow_stride(proven)

    def _prove(self, key: int) -> None:
        """A prefetched block was asked for."""
        if key in self._unused:
            self._unused.discard(key)
            self.stats.used += 1
            self._room.used(self._most_room())

    def _follow_stride(self, keys: list[int]) -> None:
        if self._options.prefetch and len(keys) == 1:
            self._add_hints(self._strides.next(keys[0], self._n_keys), preferred=False)

    def _add_hints(self, keys: Iterable[int], preferred: bool) -> None:
        new = [
            key
            for key in keys
            if key < self._n_keys and key not in self._row_of and key not in self._under_way
        ]
        self.stats.dropped += self._hints.add(new, preferred=preferred)

    def _most_room(self) -> int:
        """Blocks that memory and the line as it is measured now have room for."""
        n_bytes = min(self._options.window_bytes, self._link.window_bytes)
        return max(min(n_bytes // self._block_bytes, self._capacity // 2), 1)

    def _pump(self) -> None:
        """Start reads for hints, as many as the room allows."""
        room = self._room.blocks(self._most_room()) - len(self._unused)
        if room <= 0 or not len(self._hints) or self._closed:
            return
        taken = [
            (key, preferred)
            for key, preferred in self._hints.take(room)
            if key not in self._row_of and key not in self._under_way
        ]
        for kind in (True, False):
            keys = [key for key, preferred in taken if preferred is kind]
            if keys:
                self._prefetch(keys, preferred=kind)

    def _prefetch(self, keys: list[int], *, preferred: bool) -> None:
        self._start(keys, preferred, hinted=True)
        self.stats.prefetched += len(keys)
        self._unused.update(keys)


class _Tables:
    """`TablePages`: tables start where data pages come only when they are asked for again."""

    def __init__(self, cache: BlockCache) -> None:
        self.page_size = cache.page_size
        self._cache = cache

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        return await self._cache.get(pfns, preferred=True)

    def hint(self, pfns: PfnArray) -> None:
        self._cache.hint(pfns, preferred=True)
