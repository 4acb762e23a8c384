"""Sender and receiver together, over a line that does what lines do."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

from pipeline.errors import SinkError, StageError
from pipeline.flow.channel import Channel
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline
from pipeline.run.runner import Flow, run_flow
from stages.crypt.decrypt import decrypt_file
from stages.crypt.keys import new_identity
from stages.crypt.payload import DumpKey
from stages.crypt.stage import EncryptStage
from stages.sink.journal import Journal
from stages.sink.manifest import SourceIdentity, read_manifest
from stages.sink.partial_file import PartialFile
from stages.sink.retry import RetryPolicy
from stages.sink.tcp import TcpSink
from stages.transport.limits import Limits
from tests.support.chunk_stream import ChunkStream, send
from tests.support.faulty_proxy import Faults, Line, faulty_proxy
from tests.support.running_receiver import make_tcp_sink, options, running_receiver

MIB = 1 << 20
SOURCE = SourceIdentity("/proc/vmcore", 1, None, "0" * 64)


def stream(n_bytes: int = 4 * MIB, **more: Any) -> ChunkStream:
    return ChunkStream(n_bytes, **more)


async def read(path: Path) -> bytes:
    return await anyio.Path(path).read_bytes()


async def test_upload(tmp_path: Path) -> None:
    """The dump arrives, with a manifest whose digests are those of the file."""
    source = stream()
    async with running_receiver(tmp_path) as receiver:
        receipt = await send(source, make_tcp_sink(receiver.port))

        assert receiver.names() == ["dump", "dump.manifest.json"]
    assert receipt.target.endswith("/dump")
    assert receipt.n_bytes == source.size
    assert await read(tmp_path / "dump") == source.expected()
    manifest = read_manifest(tmp_path / "dump.manifest.json")
    assert (manifest.size, manifest.name, manifest.form) == (source.size, "dump", "kdump")


@pytest.mark.parametrize("data_bytes", [0, 1, 65_536])
async def test_small_dumps(tmp_path: Path, data_bytes: int) -> None:
    """Dumps of no data, one byte and one chunk."""
    source = stream(data_bytes)
    async with running_receiver(tmp_path) as receiver:
        await send(source, make_tcp_sink(receiver.port))

    assert await read(tmp_path / "dump") == source.expected()


async def test_receiver_chooses_a_name(tmp_path: Path) -> None:
    """Two senders without a name get one each."""
    async with running_receiver(tmp_path) as receiver:
        targets = [
            (await send(stream(1000), make_tcp_sink(receiver.port, ""))).target for _ in range(2)
        ]
        names = [target.rpartition("/")[2] for target in targets]

        assert len(set(names)) == 2
        assert set(names) <= set(receiver.names())
    assert names[0].startswith("vmcore-127.0.0.1-")


FAULTS = {
    "resets": Faults(reset_every=MIB),
    "resets of the answers too": Faults(reset_every=700_000, down=Line(delay_s=0.005)),
    "corrupt chunk": Faults(up=Line(corrupt_at=2 * MIB)),
    "corrupt answer": Faults(down=Line(corrupt_at=700)),
    "stall": Faults(up=Line(stall_after=2 * MIB, stall_s=1.5)),
    "stalled answers": Faults(down=Line(stall_after=700, stall_s=1.5)),
    "away for a while": Faults(reset_every=2 * MIB, refuse_s=0.3),
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
async def test_faults_are_survived(tmp_path: Path, faults: Faults) -> None:
    """Whatever breaks, the dump that arrives in the end is the one that was sent."""
    source = stream()
    async with running_receiver(tmp_path) as receiver:
        async with faulty_proxy(receiver.port, faults) as proxy:
            sink = make_tcp_sink(proxy.port, sending=options(window_bytes=256 << 10, stall_s=0.5))
            await send(source, sink)

            seen = proxy.seen
            assert seen.resets + seen.stalls + seen.corrupted > 0
        assert receiver.names() == ["dump", "dump.manifest.json"]
    assert await read(tmp_path / "dump") == source.expected()


@pytest.mark.parametrize("at", range(0, 9000, 450))
async def test_connection_lost_at_any_byte(tmp_path: Path, at: int) -> None:
    """Claim, chunks, sync, trailer: the connection may end in the middle of each."""
    source = stream(3_000, low_bytes=1_000, head_bytes=500)
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port) as proxy:

        async def reset_at() -> None:
            while proxy.seen.up_bytes < at:
                await anyio.lowlevel.checkpoint()
            proxy.cut()

        async with anyio.create_task_group() as group:
            group.start_soon(reset_at)
            await send(source, make_tcp_sink(proxy.port))
            group.cancel_scope.cancel()
    assert await read(tmp_path / "dump") == source.expected()


async def test_done_may_be_lost(tmp_path: Path) -> None:
    """The dump has its name, but the sender never heard: it asks again, and is told."""
    source = stream(100_000)
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port) as proxy:
        sink = make_tcp_sink(proxy.port, sending=options(stall_s=0.3))
        await sink.open()
        await run_flow(flow(source, sink))
        proxy.faults.down.stall_after = proxy.seen.down_bytes
        proxy.faults.down.stall_s = 1.0
        await sink.commit()

        assert proxy.seen.stalls == 1
        assert receiver.names() == ["dump", "dump.manifest.json"]


def flow(source: ChunkStream, sink: TcpSink) -> Flow:
    source.head_order = sink.head_order
    return Flow(source, [], sink, [Channel("chunks", 256 << 10)])


async def test_receiver_is_restarted(tmp_path: Path) -> None:
    """A receiver that ends in the middle, and another one on the same port, lose nothing."""
    source = stream(8 * MIB)
    delivered = anyio.Event()

    async def deliver(sink: TcpSink) -> None:
        await run_flow(flow(source, sink))
        delivered.set()

    async with anyio.create_task_group() as group:
        async with running_receiver(tmp_path) as first:
            sink = make_tcp_sink(first.port)
            await sink.open()
            group.start_soon(deliver, sink)
            while sink.sender.window.acknowledged < 40:
                await sink.sender.changed.wait()
        assert not delivered.is_set()
        async with running_receiver(tmp_path, port=first.port) as second:
            await delivered.wait()
            await sink.commit()
            assert second.names() == ["dump", "dump.manifest.json"]

    assert sink.sender.n_lost >= 1
    assert await read(tmp_path / "dump") == source.expected()


async def test_sender_is_run_again(tmp_path: Path) -> None:
    """A second process with the journal of the first sends what is missing, and nothing twice."""
    folder, journals = tmp_path / "dumps", tmp_path / "journals"
    await anyio.Path(folder).mkdir()
    async with running_receiver(folder) as receiver:
        journal = Journal.create(journals, target="tcp://x", source=SOURCE, settings={})
        sink = make_tcp_sink(receiver.port, "", journal=journal)
        with pytest.raises(StageError, match="Input/output error"):
            await send(stream(4 * MIB, fail_at=3 * MIB), sink)
        n_there = sink.sender.window.acknowledged
        assert n_there > 10

        again = make_tcp_sink(receiver.port, "", journal=Journal.open(journal.path))
        source = stream(4 * MIB)
        receipt = await send(source, again)

        window = again.sender.window
        assert window.n_skipped >= n_there
        assert window.n_skipped < window.added
        name = receipt.target.rpartition("/")[2]
        assert receiver.names() == [name, f"{name}.manifest.json"]
    assert await read(folder / name) == source.expected()
    assert not journal.path.exists()


async def test_sender_is_run_again_on_another_image(tmp_path: Path) -> None:
    """Chunks are compared, so two images never become one dump."""
    folder = tmp_path / "dumps"
    await anyio.Path(folder).mkdir()
    async with running_receiver(folder) as receiver:
        journal = Journal.create(tmp_path, target="tcp://x", source=SOURCE, settings={})
        with pytest.raises(StageError):
            await send(
                stream(4 * MIB, fail_at=3 * MIB), make_tcp_sink(receiver.port, journal=journal)
            )

        again = make_tcp_sink(receiver.port, journal=Journal.open(journal.path))
        with pytest.raises(StageError, match="source or the settings changed"):
            await send(stream(4 * MIB, seed=1), again)

        assert receiver.names() == ["dump.partial", "dump.partial.state"]


async def test_what_a_dead_sender_leaves(tmp_path: Path) -> None:
    """The partial file begins with a head: it is a dump that says it is incomplete."""
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port)
        await sink.open()
        with pytest.raises(StageError):
            await run_flow(flow(stream(8 * MIB, fail_at=7 * MIB), sink))

        assert await sink.abort() == f"tcp://127.0.0.1:{receiver.port}/dump.partial"
        head = (await read(tmp_path / "dump.partial"))[:5_000]
        assert head == stream(8 * MIB).expected(0, 5_000)


async def test_aborted_before_anything_was_sent(tmp_path: Path) -> None:
    """A run that fails in its first pass leaves no trace at the receiver."""
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port)
        await sink.open()
        assert receiver.names() == ["dump.partial", "dump.partial.state"]

        assert await sink.abort() is None
        assert receiver.names() == []


async def test_abort_never_hangs_or_raises(tmp_path: Path) -> None:
    """With the receiver gone, abort gives up."""
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port)
        await sink.open()

    assert await sink.abort() is None


async def test_memory_is_bounded_by_the_window(tmp_path: Path) -> None:
    """While the line stands still, the sink takes what its window holds and no more."""
    source = stream(64 * MIB)
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port) as proxy:
        sink = make_tcp_sink(proxy.port, sending=options(window_bytes=MIB, stall_s=60.0))
        await sink.open()
        async with anyio.create_task_group() as group:
            proxy.faults.up.stall_after = 2 * MIB
            proxy.faults.up.stall_s = 60.0
            group.start_soon(run_flow, flow(source, sink))
            n_sent = -1
            while source.n_sent != n_sent:
                n_sent = source.n_sent
                await anyio.sleep(0.3)

            assert sink.sender.window.n_bytes <= MIB
            # In flight: our window, both sockets' buffers, and what the proxy holds.
            assert n_sent < 16 * MIB
            group.cancel_scope.cancel()


async def test_cancelled_run_leaves_nothing_running(tmp_path: Path) -> None:
    """Cancellation in the middle ends every task; the upload can be resumed."""
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port)
        await sink.open()
        async with anyio.create_task_group() as group:
            group.start_soon(run_flow, flow(stream(64 * MIB), sink))
            while sink.sender.window.acknowledged < 10:
                await sink.sender.changed.wait()
            group.cancel_scope.cancel()
        await sink.abort()
        with anyio.fail_after(5):
            await wait_all_tasks_blocked()

        assert receiver.names() == ["dump.partial", "dump.partial.state"]


async def test_torn_stream_is_never_committed(tmp_path: Path) -> None:
    """A writer that stops without its end leaves a partial file."""
    async with running_receiver(tmp_path) as receiver:
        with pytest.raises(StageError):
            await send(stream(8 * MIB, fail_at=7 * MIB, torn=True), make_tcp_sink(receiver.port))

        assert receiver.names() == ["dump.partial", "dump.partial.state"]


async def test_nobody_listens() -> None:
    """One line that names the target, after the deadline and no later."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    policy = RetryPolicy(0.01, 0.05, 0.3)
    sink = make_tcp_sink(port, sending=options(policy=policy))
    with anyio.fail_after(3), pytest.raises(SinkError) as caught:
        await sink.open()

    assert str(caught.value) == f"tcp://127.0.0.1:{port}/dump: Connection refused"


async def test_receiver_that_vanishes_for_good(tmp_path: Path) -> None:
    """Patience ends when nothing has moved for the deadline."""
    policy = RetryPolicy(0.01, 0.05, 0.5)
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port) as proxy:
        sink = make_tcp_sink(proxy.port, sending=options(policy=policy))
        await sink.open()
        proxy.faults.refuse_s = 60
        proxy.faults.reset_every = MIB
        with anyio.fail_after(5), pytest.raises(StageError, match=r"127\.0\.0\.1"):
            await run_flow(flow(stream(4 * MIB), sink))


async def test_encrypted_upload(tmp_path: Path) -> None:
    """Encryption goes in front of the sink; the receiver verifies what it cannot read."""
    identity = new_identity()
    source = stream(MIB)
    source.head_order = HeadOrder.LAST
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port, form="encrypted")
        await sink.open()
        stage = EncryptStage(DumpKey([identity.recipient], bytes(32)))
        channels: list[Channel[Any]] = [Channel("plain", MIB), Channel("sealed", MIB)]
        await run_flow(Flow(source, [stage], sink, channels))
        await sink.commit()

    plain = PartialFile(str(tmp_path / "plain"), overwrite=False, fsync=False)
    decrypt_file(tmp_path / "dump", plain, [identity])
    assert await read(tmp_path / "plain") == source.expected()
    assert read_manifest(tmp_path / "dump.manifest.json").form == "encrypted"


async def test_limits_of_rate(tmp_path: Path) -> None:
    """A receiver takes no more bytes a second than it was told to."""
    source = stream(2 * MIB)
    async with running_receiver(tmp_path, Limits(max_rate=4 * MIB)) as receiver:
        started = anyio.current_time()
        await send(source, make_tcp_sink(receiver.port))
        assert anyio.current_time() - started > 0.3

    async with running_receiver(tmp_path) as receiver:
        started = anyio.current_time()
        sending = options(rate=4 * MIB)
        await send(stream(2 * MIB), make_tcp_sink(receiver.port, "slow", sending=sending))
        assert anyio.current_time() - started > 0.3


async def test_chunks_are_cut_to_size(tmp_path: Path) -> None:
    """However large the pipeline's chunks are, the line's are not."""
    source = ChunkStream(MIB, chunk_bytes=MIB, head_bytes=200_000)
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port, chunk_bytes=50_000)
        await send(source, sink)

        assert sink.sender.window.added >= MIB // 50_000 + 8
    assert await read(tmp_path / "dump") == source.expected()


async def test_chunk_without_outline_is_refused(tmp_path: Path) -> None:
    """A sink must be told where the data starts."""
    channel: Channel[Outline | Chunk | EndOfDump] = Channel("chunks", 1000)
    async with running_receiver(tmp_path) as receiver:
        sink = make_tcp_sink(receiver.port)
        await sink.open()
        await channel.send(Chunk(ChunkKind.DATA, 0, b"x"))
        with pytest.raises(Exception, match="no outline"):
            await sink.run(channel)
        await sink.abort()


async def test_slow_line_is_not_a_stall(tmp_path: Path) -> None:
    """A chunk that takes longer than the stall limit arrives, because its bytes keep coming."""
    source = stream(500_000, chunk_bytes=500_000)
    line = Faults(up=Line(rate=400_000))
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port, line) as proxy:
        sending = options(stall_s=0.8, heartbeat_s=0.05, window_bytes=2 * MIB)
        sink = make_tcp_sink(proxy.port, chunk_bytes=500_000, sending=sending)
        await send(source, sink)

        assert sink.sender.n_lost == 0


async def test_slow_source_does_not_wear_out_patience(tmp_path: Path) -> None:
    """A connection lost after a long idle time is no failure that lasted that long."""
    policy = RetryPolicy(0.01, 0.05, 0.3)
    source = stream(MIB)
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port) as proxy:
        sink = make_tcp_sink(proxy.port, sending=options(policy=policy, heartbeat_s=0.05))
        await sink.open()
        channel: Channel[Any] = Channel("chunks", MIB)
        async with anyio.create_task_group() as group:
            group.start_soon(sink.run, channel)
            await channel.send(source.outline)
            await anyio.sleep(0.6)
            proxy.cut()
            async with channel.sender():
                source.head_order = sink.head_order
                await source.run(channel)
        await sink.commit()
    assert await read(tmp_path / "dump") == source.expected()


async def test_progress_renews_patience(tmp_path: Path) -> None:
    """An upload that moves a little with every connection takes as many as it needs."""
    policy = RetryPolicy(0.01, 0.02, 0.2)
    source = stream(2 * MIB)
    faults = Faults(reset_every=200_000)
    async with running_receiver(tmp_path) as receiver, faulty_proxy(receiver.port, faults) as proxy:
        sending = options(policy=policy, window_bytes=128 << 10)
        sink = make_tcp_sink(proxy.port, chunk_bytes=16 << 10, sending=sending)
        await send(source, sink)

        assert proxy.seen.resets >= 10
    assert await read(tmp_path / "dump") == source.expected()
