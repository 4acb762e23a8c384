"""`FanOutSink`: every target gets everything, at its own speed, and one may fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pipeline.errors import DumpError, RestartableSinkError, SinkError, TornStreamError
from pipeline.flow.channel import Channel, Inbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt
from pipeline.flow.protocols import Sink
from pipeline.run.runner import Flow, run_flow
from stages.sink.fanout import FanOutSink, Item
from stages.sink.file import FileSink, PwriteWriter
from stages.sink.flattened import FileStream, FlattenedSink
from stages.sink.partial_file import PartialFile
from stages.transport.flat_stream import receive_stream
from tests.support.captured_log import captured_log
from tests.support.chunk_stream import ChunkStream, send

pytestmark = pytest.mark.anyio

SIZE = 1_000_000


class MemorySink:
    """Keeps what it gets, and does as it is told."""

    name = "sink"

    def __init__(
        self,
        head_order: HeadOrder = HeadOrder.LAST,
        *,
        fail_in: str = "",
        fail_at: int = 1 << 60,
        gate: anyio.Event | None = None,
    ) -> None:
        self.head_order = head_order
        self.data = bytearray()
        self.heads: list[int] = []
        self.steps: list[str] = []
        self._fail_in = fail_in
        self._fail_at = fail_at
        self._gate = gate

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self._fail_in:
            raise SinkError(f"no {name} today")

    async def open(self) -> None:
        await checkpoint()
        self._step("open")

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        self._step("run")
        async for item in inbox:
            if isinstance(item, EndOfDump):
                return Receipt("memory", len(self.data))
            if isinstance(item, Chunk):
                await self._take(item)
        raise TornStreamError("no end")

    async def _take(self, chunk: Chunk) -> None:
        if chunk.kind is ChunkKind.DATA and self._gate is not None:
            await self._gate.wait()
        end = chunk.offset + chunk.n_bytes
        self.data.extend(bytes(max(end - len(self.data), 0)))
        self.data[chunk.offset : end] = chunk.data
        if chunk.kind is ChunkKind.HEAD:
            self.heads.append(end)
        if chunk.release is not None:
            chunk.release()
        if end > self._fail_at:
            raise SinkError("the disk is full")

    async def commit(self) -> None:
        self._step("commit")

    async def abort(self) -> str | None:
        self.steps.append("abort")
        return "memory.partial" if self.data else None


def fan(*sinks: MemorySink, buffer_bytes: int = 1 << 20) -> FanOutSink:
    return FanOutSink(
        [(f"target {index}", sink) for index, sink in enumerate(sinks)], buffer_bytes=buffer_bytes
    )


async def test_every_target_gets_the_dump() -> None:
    """All have all of it, and the chunks' memory went back."""
    sinks = [MemorySink() for _ in range(3)]
    stream = ChunkStream(SIZE)
    receipt = await send(stream, fan(*sinks))
    assert receipt.n_bytes == stream.size
    for sink in sinks:
        assert sink.data == stream.expected()
        assert sink.steps == ["open", "run", "commit"]
    assert stream.slots.n_out == 0


async def test_files_and_streams_go_together(tmp_path: Path) -> None:
    """Targets that want the head at different times get what each can use."""
    file = PartialFile(str(tmp_path / "a"), overwrite=False, fsync=False)
    flat = PartialFile(str(tmp_path / "b"), overwrite=False, fsync=False)
    last = MemorySink(HeadOrder.LAST)
    sinks: list[tuple[str, Sink[Item]]] = [
        ("a", FileSink(file, PwriteWriter())),
        ("b", FlattenedSink(FileStream(flat))),
        ("c", last),
    ]
    sink = FanOutSink(sinks, buffer_bytes=1 << 20)
    assert sink.head_order is HeadOrder.BOTH
    stream = ChunkStream(SIZE)
    await send(stream, sink)
    assert (tmp_path / "a").read_bytes() == stream.expected()
    assembled = PartialFile(str(tmp_path / "c"), overwrite=False, fsync=False)
    with (tmp_path / "b").open("rb") as source:
        receive_stream(source, assembled)
    assert (tmp_path / "c").read_bytes() == stream.expected()
    assert last.data == stream.expected()
    assert len(last.heads) == 1


@pytest.mark.parametrize("order", list(HeadOrder))
def test_targets_of_one_mind_get_their_way(order: HeadOrder) -> None:
    """The head comes when all of them want it."""
    assert fan(MemorySink(order), MemorySink(order)).head_order is order


async def test_a_slow_target_stops_the_flow_at_its_buffer() -> None:
    """The fast one runs ahead by the slow one's buffer and no further."""
    gate = anyio.Event()
    fast, slow = MemorySink(), MemorySink(gate=gate)
    stream = ChunkStream(SIZE, chunk_bytes=50_000)
    sink = fan(slow, fast, buffer_bytes=200_000)
    async with anyio.create_task_group() as group:
        group.start_soon(send, stream, sink)
        await anyio.wait_all_tasks_blocked()
        ahead = len(fast.data) - stream.data_start
        assert 150_000 <= ahead <= 300_000
        gate.set()
    assert slow.data == fast.data == stream.expected()


async def test_a_target_that_lags_does_not_hold_the_chunks_memory() -> None:
    """What waits for it is copied: the few slots go on to the next pages."""
    gate = anyio.Event()
    fast, slow = MemorySink(), MemorySink(gate=gate)
    stream = ChunkStream(SIZE, chunk_bytes=50_000, n_slots=2)
    async with anyio.create_task_group() as group:
        group.start_soon(send, stream, fan(slow, fast, buffer_bytes=400_000))
        await anyio.wait_all_tasks_blocked()
        assert len(fast.data) - stream.data_start >= 350_000
        gate.set()
    assert slow.data == stream.expected()


@pytest.mark.parametrize("fail_at", [1, 300_000, 900_000])
async def test_a_target_that_fails_is_dropped(fail_at: int) -> None:
    """The others have the whole dump; the failed one was undone and is named with its reason."""
    bad, good = MemorySink(fail_at=fail_at), MemorySink()
    sink = fan(bad, good, buffer_bytes=100_000)
    stream = ChunkStream(SIZE)
    with captured_log() as log:
        await send(stream, sink)
    assert good.data == stream.expected()
    assert good.steps == ["open", "run", "commit"]
    assert bad.steps == ["open", "run", "abort"]
    assert str(sink.branches[0].error) == "the disk is full"
    assert sink.branches[1].receipt is not None
    assert "target 0" in log.getvalue()
    assert stream.slots.n_out == 0


async def test_targets_that_fail_while_another_one_is_waited_for() -> None:
    """Memory of the chunk that was about to reach them goes back all the same."""
    slow_gate, bad_gate = anyio.Event(), anyio.Event()
    slow = MemorySink(gate=slow_gate)
    bad = [MemorySink(gate=bad_gate, fail_at=1) for _ in range(2)]
    stream = ChunkStream(SIZE, chunk_bytes=50_000)
    async with anyio.create_task_group() as group:
        group.start_soon(send, stream, fan(slow, *bad, buffer_bytes=200_000))
        await anyio.wait_all_tasks_blocked()  # the slow one has all that it holds
        bad_gate.set()
        await anyio.wait_all_tasks_blocked()
        assert [sink.steps[-1] for sink in bad] == ["abort", "abort"]
        slow_gate.set()
    assert slow.data == stream.expected()
    assert stream.slots.n_out == 0


@pytest.mark.parametrize("step", ["open", "run", "commit"])
async def test_a_target_may_fail_at_any_step(step: str) -> None:
    """Opening, running, committing: the others go on."""
    bad, good = MemorySink(fail_in=step), MemorySink()
    stream = ChunkStream(SIZE)
    await send(stream, fan(good, bad))
    assert good.data == stream.expected()
    assert good.steps[-1] == "commit"
    assert (bad.steps[-1] == "abort") == (step != "open")


@pytest.mark.parametrize("step", ["open", "run", "commit"])
async def test_the_dump_fails_when_all_targets_have(step: str) -> None:
    """The error names each with its reason."""
    sinks = [MemorySink(fail_in=step) for _ in range(2)]
    with pytest.raises(DumpError, match=rf"target 0: no {step} today; target 1: no {step} today"):
        await send(ChunkStream(SIZE), fan(*sinks))


@pytest.mark.parametrize("torn", [True, False])
async def test_a_dump_that_fails_is_undone_everywhere(torn: bool) -> None:
    """The source's failure reaches all, and what is left anywhere is told."""
    sinks = [MemorySink() for _ in range(2)]
    sink = fan(*sinks)
    stream = ChunkStream(SIZE, fail_at=500_000, torn=torn)
    await sink.open()
    with pytest.raises(DumpError):
        await run_flow(Flow(stream, [], sink, [Channel[Item]("chunks", 1 << 20)]))
    assert await sink.abort() == "memory.partial, memory.partial"
    assert [each.steps[-1] for each in sinks] == ["abort", "abort"]


async def test_an_end_before_the_dump_s_is_a_failure() -> None:
    """A sink that stops taking without an error is not believed."""

    class Early(MemorySink):
        async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
            await inbox.receive()
            return Receipt("early", 0)

    with pytest.raises(DumpError):
        await send(ChunkStream(SIZE), fan(Early(), MemorySink()))


async def test_facts_reach_those_that_write_manifests() -> None:
    """`describe` is passed on to sinks that have it."""
    from stages.sink.manifest import DumpFacts

    told: list[DumpFacts] = []

    class Telling(MemorySink):
        describe: Callable[[DumpFacts], None] = staticmethod(told.append)

    facts = DumpFacts(kernel_release="6.1")
    fan(Telling(), MemorySink()).describe(facts)
    assert told == [facts]


class Leaving(MemorySink):
    """Leaves a part of the dump behind whenever it is undone, and takes a while over it."""

    async def abort(self) -> str | None:
        await checkpoint()
        return "part.partial"


async def test_what_a_dropped_target_left_is_told() -> None:
    """By `abort`, when the others failed as well."""
    sink = fan(Leaving(fail_at=1), MemorySink(fail_at=1))
    with pytest.raises(DumpError, match="every target failed"):
        await send(ChunkStream(SIZE), sink)
    assert sink.branches[0].left == "part.partial"
    assert "part.partial" in (await sink.abort() or "")


async def test_abort_ends_its_work_in_a_run_that_was_cancelled() -> None:
    """Ctrl-C cancels everything around it; the caller still learns what is left."""
    sink = fan(Leaving(), Leaving())
    await sink.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        left = await sink.abort()
    assert left == "part.partial, part.partial"


async def test_what_is_committed_stays() -> None:
    """A run that is cancelled in the commit of the slow one does not undo the quick one."""

    class Slow(MemorySink):
        async def commit(self) -> None:
            await anyio.sleep_forever()

    quick, slow = MemorySink(), Slow()
    sink = fan(quick, slow)
    await sink.open()
    await run_flow(Flow(ChunkStream(SIZE), [], sink, [Channel[Item]("chunks", 1 << 20)]))
    with anyio.move_on_after(0.05):
        await sink.commit()
    left = await sink.abort()
    assert quick.steps == ["open", "run", "commit"]
    assert slow.steps == ["open", "run", "abort"]
    assert left == "memory, memory.partial"


async def test_a_target_that_hangs_while_it_is_opened_is_dropped() -> None:
    """The others wait for it, so only for so long."""

    class Deaf(MemorySink):
        async def open(self) -> None:
            await anyio.sleep_forever()

    good = MemorySink()
    sink = FanOutSink([("deaf", Deaf()), ("good", good)], buffer_bytes=1 << 20, open_s=0.05)
    receipt = await send(ChunkStream(SIZE), sink)
    assert receipt.target == "memory"
    assert str(sink.branches[0].error) == "deaf: not open after 0.05 s"
    assert good.steps == ["open", "run", "commit"]


async def test_targets_that_could_start_over() -> None:
    """Where one of them could, another run of the whole may help."""

    class Lost(MemorySink):
        async def open(self) -> None:
            raise RestartableSinkError("lost")

    with pytest.raises(RestartableSinkError, match="every target failed"):
        await fan(Lost(), MemorySink(fail_in="open")).open()


async def test_receipt_after_the_commit_is_of_those_that_have_it() -> None:
    """One that failed there is in it no more."""
    good = MemorySink()
    sink = fan(good, MemorySink(fail_in="commit"))
    await send(ChunkStream(SIZE), sink)
    assert sink.receipt().target == "memory"
