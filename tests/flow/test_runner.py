"""The runner: one error out of many, nothing running afterwards, no commit from a torn flow."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from pipeline.errors import DumpError, InterruptedRunError, StageError, TornStreamError
from pipeline.flow.channel import Channel, Inbox, Outbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Receipt, Totals
from pipeline.run.runner import Flow, run_flow, run_watched

Item = Chunk | EndOfDump


def chunk(n_bytes: int = 10) -> Chunk:
    return Chunk(ChunkKind.DATA, 0, bytes(n_bytes))


@dataclass
class Numbers:
    """Sends `n_items` chunks; then the end, unless it is torn or fails."""

    n_items: int
    torn: bool = False
    fails: bool = False
    name: str = "numbers"

    async def run(self, outbox: Outbox[Item]) -> None:
        for _ in range(self.n_items):
            await outbox.send(chunk())
        if self.fails:
            raise DumpError("no more numbers")
        if not self.torn:
            await outbox.send(EndOfDump(Totals()))


@dataclass
class Pass:
    """Hands everything on; fails at item `fail_at`."""

    fail_at: int = -1
    name: str = "pass"

    async def run(self, inbox: Inbox[Item], outbox: Outbox[Item]) -> None:
        seen = 0
        async for item in inbox:
            if seen == self.fail_at:
                raise OSError(5, "Input/output error")
            seen += 1
            await outbox.send(item)
            if isinstance(item, EndOfDump):
                return
        raise TornStreamError("pass: torn")


@dataclass
class Collect:
    """Counts chunks; `stalls` never takes anything."""

    stalls: bool = False
    name: str = "collect"
    head_order: HeadOrder = HeadOrder.BOTH
    seen: list[Chunk] = field(default_factory=list)

    async def open(self) -> None:
        """Nothing to claim."""

    async def run(self, inbox: Inbox[Item]) -> Receipt:
        if self.stalls:
            await anyio.sleep_forever()
        async for item in inbox:
            if isinstance(item, EndOfDump):
                return Receipt("nowhere", len(self.seen))
            self.seen.append(item)
        raise TornStreamError("collect: torn")


def flow(source: Any, stage: Any, sink: Any) -> Flow:
    return Flow(source, [stage], sink, [Channel("a", 64), Channel("b", 64)])


async def test_clean_run_gives_the_receipt() -> None:
    """Everything sent arrives and the sink's receipt comes back."""
    sink = Collect()

    receipt = await run_flow(flow(Numbers(100), Pass(), sink))

    assert receipt == Receipt("nowhere", 100)


@pytest.mark.parametrize("n_items", [0, 1, 50])
async def test_failing_stage_is_the_only_error(n_items: int) -> None:
    """A stage's own error comes out, not the broken channels it leaves behind."""
    with pytest.raises(StageError) as caught:
        await run_flow(flow(Numbers(n_items), Pass(fail_at=0), Collect()))

    assert caught.value.stage == "pass"
    assert isinstance(caught.value.cause, OSError)


async def test_failing_source_is_named_although_others_see_a_torn_stream() -> None:
    """The source's failure is reported even if a later stage notices the torn channel first."""
    with pytest.raises(StageError, match="no more numbers"):
        await run_flow(flow(Numbers(3, fails=True), Pass(), Collect()))


async def test_source_without_end_is_torn() -> None:
    """A source that returns without EndOfDump fails the run."""
    with pytest.raises(StageError) as caught:
        await run_flow(flow(Numbers(3, torn=True), Pass(), Collect()))

    assert isinstance(caught.value.cause, TornStreamError)


async def test_stalled_sink_stops_the_source() -> None:
    """With a sink that takes nothing, channels fill to their budget and no further."""
    the_flow = flow(Numbers(1000), Pass(), Collect(stalls=True))
    with anyio.move_on_after(0.05) as scope:
        await run_flow(the_flow)

    assert scope.cancelled_caught
    assert the_flow.channels[1].stats.peak_bytes <= 64
    assert the_flow.channels[0].stats.n_items <= 6 + 1 + 6 + 1


async def test_signal_ends_the_run_with_one_error() -> None:
    """SIGTERM in the middle cancels every stage and becomes InterruptedRunError."""
    stopped: list[str] = []

    async def job() -> None:
        try:
            await run_flow(flow(Numbers(10), Pass(), Collect(stalls=True)))
        finally:
            stopped.append("job")

    async def companion() -> None:
        await anyio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        await run_watched(job, [companion])

    assert stopped == ["job"]


async def test_second_signal_leaves_the_clean_up_alone() -> None:
    """timeout(1) sends each signal twice; afterwards they mean what they meant before."""
    cleaned: list[str] = []
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]

    async def job() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGHUP)
                await anyio.sleep(0.05)
            cleaned.append("job")

    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        await run_watched(job)

    assert cleaned == ["job"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


async def test_signal_that_comes_too_late() -> None:
    """A job that ended well all the same has done what it was to do, and nobody is told else."""

    async def job() -> int:
        with anyio.CancelScope(shield=True):
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep(0.05)
        return 7

    assert await run_watched(job) == 7


async def test_companions_are_cancelled_at_the_end() -> None:
    """Progress and the like never keep a finished run alive."""

    async def job() -> int:
        return 7

    assert await run_watched(job, [anyio.sleep_forever]) == 7


async def test_watched_job_keeps_its_own_error() -> None:
    """What the job raises comes out as it was, not wrapped in a group."""

    async def job() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await run_watched(job, [anyio.sleep_forever])
