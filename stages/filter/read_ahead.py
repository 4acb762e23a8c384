"""Pass 1 over a line: heads are asked for far ahead of the windows that are read whole.

Both kinds of reads are under way at once, and neither waits for the other; only what comes out is
in order::

    locate ──▶ heads of groups ──▶ windows in order ──▶ out
               n_probers threads    └▶ those not all free are read: `workers` threads
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Final, TypeAlias, TypeVar

import anyio.to_thread
from msgspec import Struct

from pipeline.memory.addresses import BoolArray
from stages.filter.scan import ScannedWindow, WindowScanner
from stages.filter.windows import LocatedWindow, Window

T = TypeVar("T")
Locate: TypeAlias = Callable[[Sequence[Window]], Awaitable[list[LocatedWindow]]]

_WORKERS_PER_PROBER: Final = 2
"""A prober has the buffers of two workers: threads that ask for twice as much at a time take the
interpreter from each other half as often (0.174 s for a pass 1 that takes 0.186 s otherwise)."""
_MAX_PROBERS: Final = 4
_MAX_AHEAD: Final = 256
"""Windows that wait for the one before them; those to be read take 5 KiB each."""


class _Next(Struct):
    """A window whose heads are known. `scan` is None until it is read, and for a free one."""

    window: Window
    located: LocatedWindow | None
    """None: all of it is free blocks."""
    free: BoolArray | None
    scan: Future[ScannedWindow] | None = None


_Group: TypeAlias = tuple[Sequence[Window], Sequence[LocatedWindow]]


class ReadAhead:
    """One sweep's windows, scanned in threads; for one call of `results`."""

    def __init__(
        self,
        windows: Iterator[Window],
        locate: Locate,
        make_scanner: Callable[[int], WindowScanner],
        workers: int,
    ) -> None:
        """`workers` windows are read at a time, beside the heads of many.

        Args:
            windows: ascending.
            locate: finds their struct pages.
            make_scanner: gives one with room for so many windows.
            workers: buffers for windows, and as many again for heads.
        """
        self._windows = windows
        self._locate = locate
        self._n_probers = min(-(-workers // _WORKERS_PER_PROBER), _MAX_PROBERS)
        self._workers = workers
        self._scanners: SimpleQueue[WindowScanner] = SimpleQueue()
        for _ in range(workers):
            self._scanners.put(make_scanner(1))
        self._probers: SimpleQueue[WindowScanner] = SimpleQueue()
        for _ in range(self._n_probers):
            prober = make_scanner(_WORKERS_PER_PROBER)
            self._group_windows = _WORKERS_PER_PROBER * prober.group_windows
            self._probers.put(prober)
        self._heads = ThreadPoolExecutor(self._n_probers, thread_name_prefix="filter-heads")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="filter")
        self._probing: deque[tuple[_Group, Future[list[BoolArray | None]]]] = deque()
        self._line: deque[_Next] = deque()
        self._unread: deque[_Next] = deque()
        self._n_scans = 0

    async def results(self) -> AsyncGenerator[tuple[Window, ScannedWindow]]:
        """Windows in their order, and what is in them."""
        try:
            while True:
                await self._ask_for_heads()
                self._start_scans()
                if self._line:
                    first = self._line.popleft()
                    yield first.window, await self._outcome(first)
                elif self._probing:
                    await self._take_heads()
                else:
                    return
        finally:
            # Nobody waits for what a silent server may never answer; after a clean end none runs.
            for pool in (self._heads, self._pool):
                pool.shutdown(wait=False, cancel_futures=True)

    async def _ask_for_heads(self) -> None:
        """Keep all probers busy, each with a group that waits behind it."""
        while self._probing and self._probing[0][1].done() and len(self._line) < _MAX_AHEAD:
            await self._take_heads()
        if len(self._probing) > self._n_probers or len(self._line) >= _MAX_AHEAD:
            return
        # Located together: windows that follow each other take one walk.
        windows = list(islice(self._windows, self._n_probers * self._group_windows))
        if not windows:
            return
        located = await self._locate(windows)
        for first in range(0, len(windows), self._group_windows):
            mine = slice(first, first + self._group_windows)
            group = windows[mine], located[mine]
            self._probing.append((group, self._heads.submit(self._probe, located[mine])))

    async def _take_heads(self) -> None:
        (windows, located), heads = self._probing.popleft()
        found_free = await _result(heads)
        for window, place, free in zip(windows, located, found_free, strict=True):
            if free is not None and free.all():
                self._line.append(_Next(window, None, None))
                continue
            found = _Next(window, place, free)
            self._line.append(found)
            self._unread.append(found)

    def _start_scans(self) -> None:
        # One more behind each that is under way; a result takes a tenth of what a reader does.
        while self._unread and self._n_scans < 2 * self._workers:
            found = self._unread.popleft()
            found.scan = self._pool.submit(self._scan, found)
            self._n_scans += 1

    async def _outcome(self, first: _Next) -> ScannedWindow:
        if first.scan is None:
            return ScannedWindow(None)
        self._n_scans -= 1
        return await _result(first.scan)

    def _probe(self, located: Sequence[LocatedWindow]) -> list[BoolArray | None]:
        prober = self._probers.get()
        try:
            return prober.probe(located)
        finally:
            self._probers.put(prober)

    def _scan(self, found: _Next) -> ScannedWindow:
        assert found.located is not None, "free windows are not read"
        scanner = self._scanners.get()
        try:
            return scanner.scan_window(found.located, found.free)
        finally:
            self._scanners.put(scanner)


async def _result(future: Future[T]) -> T:
    """What `future` gives; whoever is cancelled here leaves its thread to finish."""
    if future.done():
        return future.result()
    return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
