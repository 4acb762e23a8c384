"""The sender's end: an upload that survives its connections.

`Sender` keeps what belongs to the upload (token, window) and opens one connection after another
until the work at hand is done; each runs a `_Conversation` of two tasks, one that sends and one
that listens.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import anyio
import msgspec

from pipeline.errors import SinkError, first_of
from pipeline.flow.items import ChunkKind
from pipeline.obs.log import log_event
from pipeline.obs.plain import one_line
from stages.sink.retry import Failure, RetryPolicy, TransientError, retry
from stages.sink.throttle import TokenBucket
from stages.transport.endpoint import Endpoint, tls_failure
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.frames import TO_SENDER
from stages.transport.limits import check_name
from stages.transport.link import Link, LinkLostError
from stages.transport.messages import (
    VERSION,
    Ack,
    ChunkFrame,
    Discard,
    Done,
    Frame,
    Hello,
    Ping,
    Problem,
    Sync,
    TrailerFrame,
    Welcome,
)
from stages.transport.window import SendWindow

T = TypeVar("T")

_DISCARD_S: Final = 5.0
_KNOWN: Final = (SinkError, LinkLostError, ProtocolError, RefusedError)
"""What ends a connection without being a defect of ours."""


@dataclass(frozen=True, slots=True)
class SendOptions:
    """Of one upload.

    Attributes:
        stall_s: without progress for so long, a connection is given up and another one opened.
        heartbeat_s: how often both ends say that they live.
        rate: bytes a second, 0 for no limit.
    """

    policy: RetryPolicy
    window_bytes: int
    stall_s: float
    heartbeat_s: float
    rate: int = 0


class Sender:
    """One upload to one receiver."""

    def __init__(self, endpoint: Endpoint, hello: Hello, options: SendOptions) -> None:
        self.window = SendWindow(options.window_bytes)
        self.changed = anyio.Event()
        """Set, and replaced, whenever the window changed."""
        self.is_complete = False
        """Nothing will be put in any more."""
        self.n_lost = 0
        """Connections that were lost or refused."""
        self._endpoint = endpoint
        self._hello = hello
        self._options = options
        self._bucket = TokenBucket(options.rate)
        self._kept: Link | None = None
        """The connection that delivered everything, for the trailer: saves two round trips."""

    @property
    def name(self) -> str:
        """The dump's name, as the receiver decided once it was asked."""
        return self._hello.name

    def wake(self) -> None:
        """Tell whoever waits that the window changed."""
        self.changed.set()
        self.changed = anyio.Event()

    async def put(self, kind: ChunkKind, offset: int, data: memoryview) -> None:
        """Copy a chunk into the window; waits while that is full."""
        while not self.window.has_room(len(data)):
            await self.changed.wait()
        self.window.add(kind, offset, bytes(data))
        self.wake()

    def complete(self) -> None:
        """Everything was put in; `deliver` returns once it is durable."""
        self.is_complete = True
        self.wake()

    async def claim(self) -> int:
        """Find out whether the receiver takes the dump; returns how many chunks it has already.

        Raises:
            SinkError: it does not, or cannot be reached in time.
        """
        return await self._persist(self._claim_once)

    async def _claim_once(self) -> int:
        with self._explained():
            link, welcome = await self._greet(self._hello)
            await link.aclose()
            return welcome.position

    def lay_out(self, data_start: int, most_bytes: int) -> None:
        """The outline is known; `deliver` may be called."""
        self._hello = msgspec.structs.replace(
            self._hello, data_start=data_start, most_bytes=most_bytes
        )

    async def deliver(self) -> None:
        """Send the window as it fills; returns when it is complete and everything is durable.

        Raises:
            SinkError: the receiver refuses, or no connection made progress in time.
        """
        while not await self._persist(self._deliver_once):
            pass

    async def _deliver_once(self) -> bool:
        """One connection; False when it was lost after some progress: patience begins anew."""
        before = self.window.acknowledged
        conversation: _Conversation | None = None
        try:
            with self._explained():
                link, welcome = await self._greet(self._hello)
                try:
                    self.window.welcomed(welcome)
                    self.wake()
                    conversation = _Conversation(self, link, self._options, self._bucket)
                    await conversation.run()
                except BaseException:
                    await link.aclose()
                    raise
                self._kept = link
                return True
        except TransientError as error:
            self.n_lost += 1
            n_there = self.window.acknowledged
            was_well = conversation is not None and conversation.was_idle
            if n_there == before and not was_well:
                raise
            log_event("connection_lost", "warning", why=str(error), acknowledged=n_there)
            return False

    async def finish(self, end: TrailerFrame) -> None:
        """Have the receiver verify the dump and give it its name.

        Raises:
            SinkError: it refuses, or cannot be reached in time.
        """
        await self._persist(partial(self._finish_once, end))

    async def _finish_once(self, end: TrailerFrame) -> None:
        hello = msgspec.structs.replace(self._hello, finishing=True)
        with self._explained():
            kept, self._kept = self._kept, None
            async with kept or (await self._greet(hello))[0] as link:
                await link.send(end)
                while not isinstance(await self.hear(link), Done):
                    pass

    async def close(self) -> None:
        """Hang up; never raises."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.aclose()

    async def discard(self) -> int:
        """Have the receiver forget the upload if it holds nothing; tries once.

        Returns:
            Chunks that the receiver has, and keeps.

        Raises:
            SinkError: it could not be told.
        """
        with self._explained():
            link, welcome = await self._greet(self._hello)
            async with link:
                if welcome.position == 0:
                    await link.send(Discard())
                    await link.close_politely(_DISCARD_S)
            return welcome.position

    async def hear(self, link: Link) -> Frame:
        """The next frame; the receiver sends one at every heartbeat."""
        try:
            with anyio.fail_after(self._options.stall_s):
                frame = await link.receive()
        except TimeoutError:
            raise LinkLostError(f"nothing heard for {self._options.stall_s:g} s") from None
        if isinstance(frame, Problem):
            raise RefusedError(one_line(frame.text), retry=frame.retry)
        return frame

    async def _greet(self, hello: Hello) -> tuple[Link, Welcome]:
        """A new connection, on which the receiver has welcomed us."""
        stream = await self._endpoint.connect()
        link = Link(stream, TO_SENDER, timeout_s=self._options.stall_s)
        try:
            await link.send(hello)
            welcome = await self.hear(link)
            if not isinstance(welcome, Welcome) or welcome.version != VERSION:
                raise ProtocolError("the receiver does not answer HELLO as it should")
            self._hello = msgspec.structs.replace(self._hello, name=check_name(welcome.name))
        except BaseException:
            await link.aclose()
            raise
        return link, welcome

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What ends a connection becomes a `SinkError` that names the target."""
        try:
            yield
        except _KNOWN as error:
            raise self._failure(error) from error
        except BaseExceptionGroup as errors:
            first = first_of(errors)
            if not isinstance(first, _KNOWN):
                raise
            raise self._failure(first) from errors

    def _failure(self, error: Exception) -> SinkError:
        where = self._endpoint.address
        if isinstance(error, SinkError):
            return error
        if isinstance(error.__cause__, ssl.SSLError):
            # With TLS 1.3 a receiver that refuses our certificate says so after the handshake.
            return tls_failure(where, error.__cause__)
        is_passing = (
            isinstance(error, LinkLostError)
            or (isinstance(error, RefusedError) and error.retry)
            or (isinstance(error, ProtocolError) and error.corrupt)
        )
        return (TransientError if is_passing else SinkError)(f"{where}: {error}")

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await retry(attempt, self._options.policy, on_failure=self._note_failure)

    def _note_failure(self, failure: Failure) -> None:
        log_event(
            "connection_failed",
            "warning",
            why=str(failure.error),
            failures=failure.n_failures,
            retry_in_s=round(failure.delay_s, 2),
        )


class _Conversation:
    """One connection on which chunks go out and acknowledgements come in."""

    def __init__(
        self, sender: Sender, link: Link, options: SendOptions, bucket: TokenBucket
    ) -> None:
        self._sender = sender
        self._window = sender.window
        self._link = link
        self._options = options
        self._bucket = bucket
        self.was_idle = False
        """For a moment everything was acknowledged, and the receiver lived."""
        self._asked_to_sync = False
        self._moved_at = anyio.current_time()

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._send)
            await self._listen()
            group.cancel_scope.cancel()

    async def _send(self) -> None:
        while True:
            changed = self._sender.changed
            frame = self._window.next_frame()
            if frame is not None:
                if isinstance(frame, ChunkFrame):
                    await self._bucket.take(len(frame.data))
                await self._link.send(frame)
                continue
            if self._sender.is_complete and not self._asked_to_sync:
                self._asked_to_sync = True
                await self._link.send(Sync())
            with anyio.move_on_after(self._options.heartbeat_s) as silence:
                await changed.wait()
            if silence.cancelled_caught:
                await self._link.send(Ping())

    async def _listen(self) -> None:
        while not (self._asked_to_sync and self._window.durable >= self._window.added):
            frame = await self._sender.hear(self._link)
            if not isinstance(frame, Ack):
                raise ProtocolError(f"{type(frame).__name__} where only ACK is due")
            moved = self._window.acknowledge(frame)
            if moved:
                self._sender.wake()
            self.was_idle |= self._window.is_empty
            self._watch_progress(moved=moved or frame.busy or self._window.is_empty)

    def _watch_progress(self, *, moved: bool) -> None:
        """Heartbeats come through, but do our bytes?"""
        now = anyio.current_time()
        if moved:
            self._moved_at = now
        elif now - self._moved_at > self._options.stall_s:
            raise LinkLostError(f"nothing acknowledged for {self._options.stall_s:g} s")
