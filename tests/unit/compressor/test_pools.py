"""The compressor stage over each kind of pool: order, books, backpressure, and dying workers."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import numpy as np
import pytest
from anyio import wait_all_tasks_blocked

from pipeline.errors import DumpError, TornStreamError, WorkerDiedError
from pipeline.flow.channel import Channel
from pipeline.flow.items import CodedBatch, EndOfDump, PageBatch, PageState, Totals
from stages.compressor.encode import BatchWorker, EncodeSettings
from stages.compressor.pool import EncoderPool
from stages.compressor.pool_local import LocalPool
from stages.compressor.pool_processes import ProcessPool
from stages.compressor.slots import SlotArena
from stages.compressor.stage import CompressorStage
from tests.support.memory_image import PAGE_SIZE, MemoryImage

CAPACITY = 16
MODES = ["inline", "threads", "processes"]
Batches = Channel[PageBatch | EndOfDump]
Coded = Channel[CodedBatch | EndOfDump]


@contextmanager
def compressor(
    mode: str,
    image: MemoryImage,
    *,
    n_slots: int = 4,
    drop_zero: bool = True,
    on_read_error: str = "zero",
    with_input: bool = False,
) -> Iterator[tuple[CompressorStage, EncoderPool]]:
    """A stage over an open pool of two workers."""
    settings = EncodeSettings("zlib", 1, PAGE_SIZE, CAPACITY, drop_zero, True, on_read_error)
    arena = SlotArena(n_slots, CAPACITY, PAGE_SIZE, with_input=with_input)

    def make_worker() -> BatchWorker:
        return BatchWorker(image, settings)

    pool: EncoderPool
    if mode == "processes":
        pool = ProcessPool(make_worker, arena, 2)
    else:
        pool = LocalPool(make_worker, 2 if mode == "threads" else 0)
    with pool:
        yield CompressorStage(pool, arena, keep_holes=not drop_zero), pool


def batch(seq: int, *, hole: bool = False) -> PageBatch:
    pfns = np.arange(seq * CAPACITY, (seq + 1) * CAPACITY, dtype=np.uint64)
    return PageBatch(seq, pfns, PAGE_SIZE, hole=hole)


async def run_through(
    stage: CompressorStage, batches: list[PageBatch]
) -> tuple[list[tuple[int, dict[int, bytes | None]]], int]:
    """Run the stage; gives, batch by batch, seq and {pfn: content, None where missing}, and the
    number of pages that shared another's bytes."""
    inbox, outbox = Batches("in", 1 << 20), Coded("out", 1)
    seen: list[tuple[int, dict[int, bytes | None]]] = []
    shared = 0

    async def feed() -> None:
        async with inbox.sender():
            for one in batches:
                await inbox.send(one)
            await inbox.send(EndOfDump(Totals()))

    async def work() -> None:
        async with inbox.receiver(), outbox.sender():
            await stage.run(inbox, outbox)

    async with anyio.create_task_group() as group:
        group.start_soon(feed)
        group.start_soon(work)
        async for item in outbox:
            if isinstance(item, EndOfDump):
                break
            seen.append((item.seq, contents(item)))
            shared += item.n_shared
            item.release()
    return seen, shared


def contents(item: CodedBatch) -> dict[int, bytes | None]:
    pages: dict[int, bytes | None] = {}
    for row, pfn in enumerate(item.pfns.tolist()):
        if item.states[row] == PageState.MISSING:
            pages[pfn] = None
        elif item.states[row] == PageState.ZERO:
            pages[pfn] = bytes(PAGE_SIZE)
        else:
            at, size = int(item.offsets[row]), int(item.sizes[row])
            data = bytes(item.data[at : at + size])
            pages[pfn] = zlib.decompress(data) if item.coded[row] else data
    return pages


@pytest.mark.parametrize("mode", MODES)
class TestEveryPool:
    async def test_pages_come_back_in_order(self, mode: str) -> None:
        """Many more batches than slots, and each page's content is what the image holds."""
        image = MemoryImage(40 * CAPACITY)
        with compressor(mode, image) as (stage, _):
            seen, _ = await run_through(stage, [batch(seq) for seq in range(40)])

        assert [seq for seq, _ in seen] == list(range(40))
        for _, pages in seen:
            assert pages == {pfn: image.page(pfn) for pfn in pages}

    async def test_data_that_came_along_is_used(self, mode: str) -> None:
        """A batch with data is encoded from it; the image is not read."""
        image = MemoryImage(CAPACITY)
        one = batch(0)
        data = bytes(range(256)) * 16 * CAPACITY
        one.data = memoryview(data)
        one.states = np.full(CAPACITY, PageState.DATA, dtype=np.uint8)
        with compressor(mode, image, with_input=True) as (stage, _):
            seen, shared = await run_through(stage, [one])

        assert set(seen[0][1].values()) == {bytes(range(256)) * 16}
        assert shared == CAPACITY - 1

    async def test_holes_take_no_slot(self, mode: str) -> None:
        """A hole between batches keeps its place in the order and is all zero."""
        image = MemoryImage(3 * CAPACITY, zero_every=1000)
        with compressor(mode, image) as (stage, _):
            seen, _ = await run_through(stage, [batch(0), batch(1, hole=True), batch(2)])

        assert [seq for seq, _ in seen] == [0, 1, 2]
        assert set(seen[1][1].values()) == {bytes(PAGE_SIZE)}

    async def test_zero_pages_are_stored_below_level_1(self, mode: str) -> None:
        """Without dump level 1 zero pages are data; one copy a batch is encoded."""
        image = MemoryImage(CAPACITY)
        with compressor(mode, image, drop_zero=False) as (stage, _):
            seen, shared = await run_through(stage, [batch(0)])

        assert seen[0][1] == {pfn: image.page(pfn) for pfn in range(CAPACITY)}
        assert shared == CAPACITY // 4 - 1

    async def test_missing_pages_are_counted_not_invented(self, mode: str) -> None:
        """A page that can't be read stays MISSING; its neighbours are whole."""
        image = MemoryImage(CAPACITY, missing=frozenset({3, 7}))
        with compressor(mode, image) as (stage, _):
            seen, _ = await run_through(stage, [batch(0)])

        assert [pfn for pfn, page in seen[0][1].items() if page is None] == [3, 7]

    async def test_missing_page_can_end_the_run(self, mode: str) -> None:
        """With the policy `fail` the error names the page, whoever met it."""
        image = MemoryImage(CAPACITY, missing=frozenset({3}))
        with (
            compressor(mode, image, on_read_error="fail") as (stage, _),
            pytest.raises(BaseExceptionGroup) as caught,
        ):
            await run_through(stage, [batch(0)])

        assert caught.group_contains(DumpError, match="pfn 0x3")

    async def test_torn_inbox_is_an_error(self, mode: str) -> None:
        """A reader that stops without EndOfDump tears the stage, even when all batches came."""
        image = MemoryImage(CAPACITY)
        inbox, outbox = Batches("in", 1 << 20), Coded("out", 1 << 20)
        await inbox.send(batch(0))
        inbox.close_sender()
        with compressor(mode, image) as (stage, _), pytest.raises(TornStreamError):
            await stage.run(inbox, outbox)

    async def test_slow_writer_stops_the_workers(self, mode: str) -> None:
        """Nobody takes coded batches: no more are begun than there are slots."""
        image = MemoryImage(100 * CAPACITY)
        inbox, outbox = Batches("in", 1 << 30), Coded("out", 1)
        for seq in range(100):
            await inbox.send(batch(seq))
        with compressor(mode, image, n_slots=3) as (stage, _):
            async with anyio.create_task_group() as group:
                group.start_soon(stage.run, inbox, outbox)
                await wait_all_tasks_blocked()
                await anyio.sleep(0.05)
                await wait_all_tasks_blocked()
                # 3 in slots, and one more received that waits for a slot
                assert inbox.stats.n_items - len(inbox._items) == 4
                group.cancel_scope.cancel()


class TestProcesses:
    async def test_killed_worker_ends_the_run(self) -> None:
        """kill -9 of a worker is noticed at once and named with its signal."""
        image = MemoryImage(CAPACITY)
        inbox, outbox = Batches("in", 1 << 20), Coded("out", 1 << 20)
        with compressor("processes", image) as (stage, pool):
            assert isinstance(pool, ProcessPool)
            os.kill(pool.pids[0], signal.SIGKILL)
            with pytest.raises(BaseExceptionGroup) as caught:
                await stage.run(inbox, outbox)

        assert caught.group_contains(WorkerDiedError, match="SIGKILL")

    async def test_killed_worker_whose_parent_ignores_sigchld(self) -> None:
        """The kernel reaps it then, so nobody knows how it died; that it did is told."""
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            with compressor("processes", MemoryImage(CAPACITY)) as (stage, pool):
                assert isinstance(pool, ProcessPool)
                os.kill(pool.pids[0], signal.SIGKILL)
                with pytest.raises(BaseExceptionGroup) as caught:
                    await stage.run(Batches("in", 1 << 20), Coded("out", 1 << 20))
        finally:
            signal.signal(signal.SIGCHLD, before)

        assert caught.group_contains(WorkerDiedError, match="worker process [0-9]+ died")

    async def test_worker_that_was_reaped_is_not_killed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its number may be another process's by then."""
        killed: list[int] = []
        kill = os.kill

        def noted(pid: int, number: int) -> None:
            killed.append(pid)
            kill(pid, number)

        with compressor("processes", MemoryImage(CAPACITY)) as (stage, pool):
            assert isinstance(pool, ProcessPool)
            dead, alive = pool.pids
            kill(dead, signal.SIGKILL)
            with pytest.raises(BaseExceptionGroup):
                await stage.run(Batches("in", 1 << 20), Coded("out", 1 << 20))
            monkeypatch.setattr(os, "kill", noted)

        assert killed == [alive]

    @pytest.mark.parametrize("n_forks", [0, 1])
    async def test_fork_that_is_refused(
        self, n_forks: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With some workers the dump goes on; with none the error says what to do."""
        fork = os.fork
        left = [fork] * n_forks

        def limited() -> int:
            if not left:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return left.pop()()

        monkeypatch.setattr(os, "fork", limited)
        image = MemoryImage(4 * CAPACITY)
        if n_forks == 0:
            with pytest.raises(WorkerDiedError, match="no worker process can be started"):
                compressor("processes", image).__enter__()
            return
        with compressor("processes", image) as (stage, _):
            seen, _ = await run_through(stage, [batch(seq) for seq in range(4)])

        assert [seq for seq, _ in seen] == [0, 1, 2, 3]

    async def test_no_worker_outlives_the_pool(self) -> None:
        """Leaving the pool reaps every worker, also ones in the middle of a batch."""
        inbox, outbox = Batches("in", 1 << 20), Coded("out", 1 << 20)
        with compressor("processes", MemoryImage(8 * CAPACITY)) as (stage, pool):
            assert isinstance(pool, ProcessPool)
            pids = pool.pids
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            async with anyio.create_task_group() as group:
                group.start_soon(stage.run, inbox, outbox)
                for seq in range(4):
                    await inbox.send(batch(seq))
                await wait_all_tasks_blocked()
                group.cancel_scope.cancel()

        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
