"""The receiver against peers that are wrong, malicious, or too many."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from pipeline.errors import SinkError
from pipeline.flow.items import ChunkKind
from stages.transport.limits import Limits
from stages.transport.messages import Discard, Frame, Ping, Sync, Trailer, TrailerFrame
from tests.support.chunk_stream import ChunkStream, send
from tests.support.raw_peer import TOKEN, chunk, ended, hello, raw_peer
from tests.support.running_receiver import make_tcp_sink, running_receiver

BAD_NAMES = [
    "../dump",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    ".hidden",
    "dump\0",
    "dump\n",
    "dump ",
    "-rf",
    "a" * 129,
    "dump.partial",
    "dump.partial.state",
    "dump.manifest.json",
    "dump.tmp",
    "d\u00fcmp",
    "..\\dump",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
async def test_bad_names(tmp_path: Path, name: str) -> None:
    """Names that are no plain file names are refused, and nothing is made."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    async with running_receiver(folder) as receiver, raw_peer(receiver.port) as peer:
        problem = await peer.refused(hello(name=name))

        assert "is no name for a dump" in problem.text
        assert not problem.retry
        assert receiver.names() == []
    assert [one.name async for one in anyio.Path(tmp_path).iterdir()] == ["dumps"]


async def test_existing_dump_is_kept(tmp_path: Path) -> None:
    """A name that is taken is refused, also for a sender that would overwrite it."""
    (tmp_path / "dump").write_text("precious")
    async with running_receiver(tmp_path) as receiver:
        for wants in (False, True):
            async with raw_peer(receiver.port) as peer:
                problem = await peer.refused(hello(overwrite=wants))
                assert "dump: exists" in problem.text
    assert (tmp_path / "dump").read_text() == "precious"


async def test_overwriting_takes_both_ends(tmp_path: Path) -> None:
    """A dump is replaced where sender and receiver agree, and only when the new one is whole."""
    (tmp_path / "dump").write_text("old")
    source = ChunkStream(100_000)
    async with running_receiver(tmp_path, Limits(allow_overwrite=True)) as receiver:
        async with raw_peer(receiver.port) as peer:
            await peer.refused(hello())
        sink = make_tcp_sink(receiver.port, overwrite=True)
        await sink.open()
        assert (tmp_path / "dump").read_text() == "old"
        await sink.abort()

        await send(source, make_tcp_sink(receiver.port, overwrite=True))
    assert (tmp_path / "dump").read_bytes() == source.expected()


async def test_foreign_upload_cannot_be_taken_over(tmp_path: Path) -> None:
    """Without the token a name that is being uploaded is taken."""
    async with (
        running_receiver(tmp_path, Limits(allow_overwrite=True)) as receiver,
        raw_peer(receiver.port) as owner,
        raw_peer(receiver.port) as thief,
    ):
        await owner.greet()
        await owner.send(chunk(0, ChunkKind.DATA, 4096, b"mine"))
        await owner.acknowledged(1)

        problem = await thief.refused(hello(token="6" * 32, overwrite=True))

        assert "from another sender" in problem.text
        await owner.send(chunk(1, ChunkKind.DATA, 4100, b"mine"))
        await owner.acknowledged(2)


async def test_own_upload_is_taken_over(tmp_path: Path) -> None:
    """A sender that comes back ends its own former connection, which may hang for ever."""
    async with (
        running_receiver(tmp_path) as receiver,
        raw_peer(receiver.port) as former,
        raw_peer(receiver.port) as later,
    ):
        await former.greet()
        await former.send(chunk(0, ChunkKind.DATA, 4096, b"data"))
        await former.acknowledged(1)

        assert (await later.greet()).position == 1
        assert await ended(former.stream)
        await later.send(chunk(1, ChunkKind.DATA, 4100, b"more"))
        await later.acknowledged(2)


async def test_token_belongs_to_a_name(tmp_path: Path) -> None:
    """One upload cannot be continued under another name."""
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        await peer.greet()
        async with raw_peer(receiver.port) as again:
            assert "was begun as dump" in (await again.refused(hello(name="other"))).text


WRONG_FRAMES: dict[str, list[Frame]] = {
    "second HELLO": [hello()],
    "chunk out of order": [chunk(1, ChunkKind.DATA, 4096, b"x")],
    "data before its start": [chunk(0, ChunkKind.DATA, 0, b"x")],
    "data beyond the limit": [chunk(0, ChunkKind.DATA, 4096, bytes(3 << 20))],
    "head over the data": [chunk(0, ChunkKind.HEAD, 0, bytes(5000))],
    "comparison of what is not there": [chunk(0, ChunkKind.DATA, 4096, b"x").same()],
    "trailer of nothing": [TrailerFrame(Trailer(size=0, n_chunks=0, digest="0" * 64), b"{}")],
    "trailer of more": [TrailerFrame(Trailer(size=9, n_chunks=9, digest="0" * 64), b"{}")],
    "another chunk in its place": [
        chunk(0, ChunkKind.DATA, 4096, b"x"),
        chunk(0, ChunkKind.DATA, 4096, b"y"),
    ],
}


@pytest.mark.parametrize("frames", WRONG_FRAMES.values(), ids=WRONG_FRAMES.keys())
async def test_wrong_frames_end_their_own_connection_only(
    tmp_path: Path, frames: list[Frame]
) -> None:
    """The peer is told what is wrong, another upload goes on, and a new one is taken."""
    source = ChunkStream(100_000)
    async with running_receiver(tmp_path, Limits(max_bytes=2 << 20)) as receiver:
        async with raw_peer(receiver.port) as good, raw_peer(receiver.port) as bad:
            await good.greet(name="good", token="7" * 32)
            await bad.greet()
            problem = await bad.refused(*frames)
            assert problem.text

            await good.send(chunk(0, ChunkKind.DATA, 4096, b"x"))
            await good.acknowledged(1)
        await send(source, make_tcp_sink(receiver.port, "third"))
    assert (tmp_path / "third").read_bytes() == source.expected()


GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(100),
    "zeros": bytes(1000),
    "noise": os.urandom(5000),
    "an ACK": b"DS\x05\0" + bytes(16),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage(tmp_path: Path, data: bytes) -> None:
    """Whatever is no protocol of ours is answered with a line and a closed door."""
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        await peer.stream.send(data)
        with anyio.fail_after(5):
            assert await ended(peer.stream)

        assert receiver.names() == []


async def test_silent_peers_are_shown_the_door(tmp_path: Path) -> None:
    """Who connects and says nothing, or half a HELLO, or stops in a chunk, is not waited for."""
    limits = Limits(hello_timeout_s=0.2, idle_timeout_s=0.3)
    async with running_receiver(tmp_path, limits) as receiver:
        for says in (b"", b"DS\x01\0"):
            async with raw_peer(receiver.port) as peer:
                if says:
                    await peer.stream.send(says)
                with anyio.fail_after(3):
                    assert await ended(peer.stream)
        async with raw_peer(receiver.port) as peer:
            await peer.greet()
            with anyio.fail_after(3):
                assert await ended(peer.stream)


async def test_pings_keep_a_connection(tmp_path: Path) -> None:
    """A sender whose pipeline is slow stays connected by saying that it lives."""
    async with (
        running_receiver(tmp_path, Limits(idle_timeout_s=0.3)) as receiver,
        raw_peer(receiver.port) as peer,
    ):
        await peer.greet()
        for _ in range(8):
            await anyio.sleep(0.1)
            await peer.send(Ping())
        await peer.send(chunk(0, ChunkKind.DATA, 4096, b"x"))
        await peer.acknowledged(1)


async def test_more_dumps_than_allowed_wait(tmp_path: Path) -> None:
    """The third of two at once is told to come back, does, and is taken when there is room."""
    async with running_receiver(tmp_path, Limits(max_dumps=2)) as receiver:
        async with raw_peer(receiver.port) as one, raw_peer(receiver.port) as two:
            await one.greet(name="one", token="1" * 32)
            await two.greet(name="two", token="2" * 32)
            async with raw_peer(receiver.port) as three:
                problem = await three.refused(hello(name="three", token="3" * 32))
                assert problem.retry
            async with anyio.create_task_group() as group:
                group.start_soon(send, ChunkStream(1000), make_tcp_sink(receiver.port, "four"))
                await anyio.sleep(0.1)
                assert not (tmp_path / "four").exists()
                await two.stream.aclose()
        assert (tmp_path / "four").exists()


async def test_flood_of_connections(tmp_path: Path) -> None:
    """Connections beyond the bound are closed at once; those within are served."""
    limits = Limits(max_dumps=2, hello_timeout_s=5)
    async with running_receiver(tmp_path, limits) as receiver, raw_peer(receiver.port) as first:
        await first.greet()
        streams = [
            await anyio.connect_tcp("127.0.0.1", receiver.port)
            for _ in range(limits.max_connections + 10)
        ]
        with anyio.fail_after(5):
            assert await ended(streams[-1])
        await first.send(chunk(0, ChunkKind.DATA, 4096, b"x"))
        await first.acknowledged(1)
        for stream in streams:
            await stream.aclose()


async def test_number_of_unfinished_uploads_is_limited(tmp_path: Path) -> None:
    """Begun and abandoned uploads do not fill the directory."""
    async with running_receiver(tmp_path, Limits(max_partials=3)) as receiver:
        for number in range(3):
            async with raw_peer(receiver.port) as peer:
                await peer.greet(name=f"dump{number}", token=f"{number}" * 32)
        async with raw_peer(receiver.port) as peer:
            problem = await peer.refused(hello(name="dump3", token="a" * 32))
            assert "limit" in problem.text

        async with raw_peer(receiver.port) as peer:
            await peer.greet(name="dump0", token="0" * 32)
            await peer.send(Discard())
            assert await ended(peer.stream)
        async with raw_peer(receiver.port) as peer:
            await peer.greet(name="dump3", token="a" * 32)


async def test_discard_keeps_what_holds_data(tmp_path: Path) -> None:
    """Only an upload that holds nothing is forgotten when its sender says so."""
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        await peer.greet()
        await peer.send(chunk(0, ChunkKind.DATA, 4096, b"x"))
        await peer.acknowledged(1)
        await peer.send(Discard())
        assert await ended(peer.stream)

        assert receiver.names() == ["dump.partial", "dump.partial.state"]


async def test_sync_is_answered_when_everything_is_durable(tmp_path: Path) -> None:
    """After SYNC the acknowledgement says durable, also to a sender that sent nothing new."""
    async with running_receiver(tmp_path) as receiver:
        for expected in (1, 1):
            async with raw_peer(receiver.port) as peer:
                welcome = await peer.greet()
                if welcome.position == 0:
                    await peer.send(chunk(0, ChunkKind.DATA, 4096, b"x"))
                await peer.send(Sync())
                await peer.acknowledged(expected)


async def test_versions_without_overlap(tmp_path: Path) -> None:
    """A sender of the future is told which version is spoken here."""
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        problem = await peer.refused(hello(oldest=7, newest=9))

        assert "versions 7 to 9; this receiver speaks 1" in problem.text


async def test_unknown_finish(tmp_path: Path) -> None:
    """The end of an upload that nobody began is refused."""
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        problem = await peer.refused(hello(finishing=True))

        assert "no such upload" in problem.text


async def test_finish_of_another_dump(tmp_path: Path) -> None:
    """A dump that is there already is confirmed to its own sender only."""
    async with running_receiver(tmp_path) as receiver:
        await send(ChunkStream(1000), make_tcp_sink(receiver.port))
        async with raw_peer(receiver.port) as peer:
            assert (await peer.greet(finishing=True)).committed
            trailer = Trailer(size=1, n_chunks=1, digest="0" * 64)
            problem = await peer.refused(TrailerFrame(trailer, b"{}"))

            assert "is another dump" in problem.text


async def test_damaged_books_of_a_former_receiver(tmp_path: Path) -> None:
    """What cannot be read is reported and left alone; the receiver serves."""
    (tmp_path / "broken.partial.state").write_bytes(os.urandom(9000))
    (tmp_path / "short.partial.state").write_bytes(b"")
    (tmp_path / "link.partial.state").symlink_to("/etc/passwd")
    async with running_receiver(tmp_path) as receiver:
        await send(ChunkStream(1000), make_tcp_sink(receiver.port))

        assert "broken.partial.state" in receiver.names()


async def test_upload_is_found_after_a_restart(tmp_path: Path) -> None:
    """The token alone finds an unfinished upload, whatever receiver it was begun with."""
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        await peer.greet()
        await peer.send(chunk(0, ChunkKind.DATA, 4096, b"x"))
        await peer.acknowledged(1)
    async with running_receiver(tmp_path) as receiver, raw_peer(receiver.port) as peer:
        welcome = await peer.greet(name="", token=TOKEN)

        assert (welcome.name, welcome.position) == ("dump", 1)


async def test_directory_that_cannot_be_used(tmp_path: Path) -> None:
    """One line, before anything is listened on."""
    with pytest.raises(ExceptionGroup) as caught:
        async with running_receiver(tmp_path / "missing"):
            pass
    assert caught.group_contains(SinkError, match="No such file or directory")
