"""Links: what a broken, silent or deaf other end looks like."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from pipeline.flow.items import ChunkKind
from stages.transport.errors import ProtocolError
from stages.transport.frames import TO_RECEIVER, checksum, pack
from stages.transport.link import Link, LinkClosedError, LinkLostError
from stages.transport.messages import ChunkFrame, Ping

DATA = bytes(100_000)
CHUNK = ChunkFrame(0, ChunkKind.DATA, 0, DATA, checksum(DATA))


@asynccontextmanager
async def linked(timeout_s: float = 5.0) -> AsyncIterator[tuple[Link, SocketStream]]:
    """A link, and the bare stream at its other end."""
    ours, theirs = socket.socketpair()
    stream = await SocketStream.from_socket(ours)
    other = await SocketStream.from_socket(theirs)
    async with Link(stream, TO_RECEIVER, timeout_s=timeout_s) as link, other:
        yield link, other


async def send_for_ever(link: Link) -> None:
    while True:
        await link.send(CHUNK)


async def test_frames_pass() -> None:
    """Two frames in one piece are two frames."""
    async with linked() as (link, other):
        await other.send(pack(Ping()) + pack(CHUNK) + DATA)

        assert await link.receive() == Ping()
        assert await link.receive() == CHUNK


async def test_deaf_other_end() -> None:
    """An end that reads nothing is lost after the time limit, not waited for for ever."""
    ours, theirs = socket.socketpair()
    stream = await SocketStream.from_socket(ours)
    with theirs:
        async with Link(stream, TO_RECEIVER, timeout_s=0.2) as link:
            with anyio.fail_after(5), pytest.raises(LinkLostError, match="read nothing for"):
                await send_for_ever(link)


async def test_orderly_end() -> None:
    """An end between frames is told from one that cuts a frame."""
    async with linked() as (link, other):
        await other.send(pack(Ping()))
        await other.aclose()
        assert await link.receive() == Ping()
        with pytest.raises(LinkClosedError):
            await link.receive()


async def test_cut_frame() -> None:
    """A frame without its end is a broken connection."""
    async with linked() as (link, other):
        await other.send(pack(CHUNK) + DATA[:500])
        await other.aclose()
        with pytest.raises(LinkLostError, match="in a frame") as caught:
            await link.receive()
        assert not isinstance(caught.value, LinkClosedError)


async def test_sending_to_nobody() -> None:
    """Sending after the other end has gone is a broken connection too."""
    async with linked() as (link, other):
        await other.aclose()
        with pytest.raises(LinkLostError):
            await send_for_ever(link)


async def test_small_frames_leave_room_for_others() -> None:
    """Between any two of many frames that came at once, other tasks run."""
    turns = 0

    async def other_task() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with linked() as (link, other), anyio.create_task_group() as group:
        await other.send(pack(Ping()) * 100)
        group.start_soon(other_task)
        for _ in range(100):
            await link.receive()
        assert turns >= 99
        group.cancel_scope.cancel()


async def test_frames_before_a_wrong_one_are_given_out() -> None:
    """What was right is not lost with what is wrong."""
    async with linked() as (link, other):
        await other.send(pack(Ping()) + b"nonsense" * 10)
        assert await link.receive() == Ping()
        with pytest.raises(ProtocolError, match="magic"):
            await link.receive()
