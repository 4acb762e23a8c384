"""One connection that carries frames, at either end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self, cast

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from stages.transport.errors import LOST
from stages.transport.frames import FrameParser, FrameType, pack
from stages.transport.messages import ChunkFrame, Frame

_RECEIVE_BYTES: Final = 256 << 10
_CLOSE_S: Final = 2.0


class LinkLostError(ConnectionError):
    """The connection ended or broke; another one may do better."""


class LinkClosedError(LinkLostError):
    """The other end closed the connection, and cut no frame by it."""


class Link:
    """Frames over a byte stream. One task receives; any number send.

    Args:
        stream: closed with the link.
        accepts: frame types that this end takes.
        timeout_s: for one frame to get onto the line: the other end must read what it is sent.
    """

    def __init__(
        self, stream: ByteStream, accepts: frozenset[FrameType], *, timeout_s: float
    ) -> None:
        self._stream = stream
        self._timeout_s = timeout_s
        self._parser = FrameParser(accepts)
        self.n_received = 0
        """Bytes."""
        self._frames: Iterator[Frame] = iter(())
        self._sending = anyio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; never raises, and takes a moment at most."""
        with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(*LOST):
            await self._stream.aclose()

    async def send(self, frame: Frame) -> None:
        """Hand `frame` to the line; waits while that is full.

        Raises:
            LinkLostError: the connection is gone, or the other end does not read.
        """
        async with self._sending:
            try:
                with anyio.fail_after(self._timeout_s):
                    await self._stream.send(pack(frame))
                    if isinstance(frame, ChunkFrame):
                        await self._stream.send(cast("bytes", frame.data))
            except TimeoutError:
                raise LinkLostError(
                    f"the other end read nothing for {self._timeout_s:g} s"
                ) from None
            except LOST as error:
                raise LinkLostError(_why(error)) from error

    async def close_politely(self, seconds: float) -> None:
        """Say that nothing more comes, and let the other end read what was sent last.

        Closing at once, with bytes of the other end unread, would reset the connection and take
        the last frame with it.
        """
        with anyio.move_on_after(seconds):
            try:
                with contextlib.suppress(NotImplementedError):  # TLS cannot close one way only
                    await self._stream.send_eof()
                while True:
                    await self._stream.receive(_RECEIVE_BYTES)
            except LOST:
                return

    async def receive(self) -> Frame:
        """The next frame.

        Raises:
            LinkClosedError: the connection has ended.
            LinkLostError: it broke.
            ProtocolError: the other end breaks the rules, or bytes were damaged on the way.
        """
        while True:
            frame = next(self._frames, None)
            if frame is not None:
                # Whoever sends many small frames at once must not have the loop to himself.
                await anyio.lowlevel.checkpoint()
                return frame
            self._frames = self._parser.feed(await self._receive_bytes())

    async def _receive_bytes(self) -> bytes:
        try:
            data = await self._stream.receive(_RECEIVE_BYTES)
        except anyio.EndOfStream:
            if self._parser.between_frames:
                raise LinkClosedError("the other end closed the connection") from None
            raise LinkLostError("the other end closed the connection in a frame") from None
        except LOST as error:
            raise LinkLostError(_why(error)) from error
        self.n_received += len(data)
        return data


def _why(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "connection lost"
