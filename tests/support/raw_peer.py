"""A peer that speaks the dump protocol by hand, and wrongly where a test wants that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import ByteStream

from pipeline.flow.items import ChunkKind
from stages.transport.frames import TO_SENDER, FrameParser, checksum, pack
from stages.transport.messages import Ack, ChunkFrame, Frame, Hello, Problem, Welcome

TOKEN = "5" * 32
OUTLINE = {"data_start": 4096, "most_bytes": 1 << 20}


class RawPeer:
    """Sends frames or bytes, and collects what comes back."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._parser = FrameParser(TO_SENDER)
        self._frames: list[Frame] = []

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            data = bytes(frame.data) if isinstance(frame, ChunkFrame) else b""
            await self.stream.send(pack(frame) + data)

    async def receive(self) -> Frame:
        """The next frame that is no ACK."""
        with anyio.fail_after(5):
            while True:
                while not self._frames:
                    self._frames += self._parser.feed(await self.stream.receive())
                frame = self._frames.pop(0)
                if not isinstance(frame, Ack):
                    return frame

    async def acknowledged(self, written: int) -> None:
        """Wait until `written` chunks are."""
        with anyio.fail_after(5):
            while True:
                while not self._frames:
                    self._frames += self._parser.feed(await self.stream.receive())
                frame = self._frames.pop(0)
                assert isinstance(frame, Ack), frame
                if frame.written >= written:
                    return

    async def greet(self, **changes: Any) -> Welcome:
        """HELLO and its WELCOME."""
        await self.send(hello(**changes))
        welcome = await self.receive()
        assert isinstance(welcome, Welcome), welcome
        return welcome

    async def refused(self, *frames: Frame) -> Problem:
        """Send `frames`; what the receiver says before it hangs up."""
        await self.send(*frames)
        problem = await self.receive()
        assert isinstance(problem, Problem), problem
        with anyio.fail_after(5):
            assert await ended(self.stream)
        return problem


def hello(**changes: Any) -> Hello:
    return Hello(**{"token": TOKEN, "name": "dump", **OUTLINE, **changes})


def chunk(seq: int, kind: ChunkKind, offset: int, data: bytes) -> ChunkFrame:
    return ChunkFrame(seq, kind, offset, data, checksum(data))


async def ended(stream: ByteStream) -> bool:
    """True once the other end has closed, after whatever it still sends."""
    try:
        while True:
            await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True


@asynccontextmanager
async def raw_peer(port: int) -> AsyncIterator[RawPeer]:
    stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream:
        yield RawPeer(stream)
