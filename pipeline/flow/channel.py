"""A channel bounded in bytes, with the statistics that tell which stage waits for which.

One sender, one receiver, one event loop. An item weighs its `n_bytes`; a full channel stops its
sender, and an item larger than the whole budget passes alone, when nothing else is inside.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel
from msgspec import Struct

from pipeline.flow.wakeup import Wakeup


class Weighted(Protocol):
    """Anything that knows how many bytes of memory it holds."""

    @property
    def n_bytes(self) -> int: ...


T = TypeVar("T", bound=Weighted)
T_contra = TypeVar("T_contra", contravariant=True, bound=Weighted)
T_co = TypeVar("T_co", covariant=True, bound=Weighted)


class ChannelStats(Struct):
    """What a channel saw during a run."""

    name: str
    capacity_bytes: int
    n_items: int = 0
    n_bytes: int = 0
    peak_bytes: int = 0
    peak_items: int = 0
    send_blocked_s: float = 0.0
    receive_blocked_s: float = 0.0


class Outbox(Protocol[T_contra]):
    """The sending end."""

    async def send(self, item: T_contra) -> None:
        """Hand `item` over; waits while the channel is full.

        Raises:
            anyio.BrokenResourceError: the receiver is gone.
            anyio.ClosedResourceError: this end was closed.
        """


class Inbox(Protocol[T_co]):
    """The receiving end."""

    async def receive(self) -> T_co:
        """The next item; waits while the channel is empty.

        Raises:
            anyio.EndOfStream: the sender closed and everything was received.
            anyio.ClosedResourceError: this end was closed.
        """

    def __aiter__(self) -> Inbox[T_co]: ...

    async def __anext__(self) -> T_co: ...


class Channel(Generic[T]):
    """Both ends in one object; the runner gives each stage the end that it needs."""

    def __init__(self, name: str, capacity_bytes: int) -> None:
        if capacity_bytes < 1:
            raise ValueError(f"channel {name}: capacity {capacity_bytes} is not positive")
        self.stats = ChannelStats(name, capacity_bytes)
        self.fill_bytes = 0
        self._items: deque[T] = deque()
        self._sender_open = True
        self._receiver_open = True
        self._changed = Wakeup()

    def _has_room(self, n_bytes: int) -> bool:
        return not self._items or self.fill_bytes + n_bytes <= self.stats.capacity_bytes

    def _may_send(self, n_bytes: int) -> bool:
        """True also when the receiver is gone: then sending fails at once."""
        return not self._receiver_open or self._has_room(n_bytes)

    def _may_receive(self) -> bool:
        return bool(self._items) or not (self._sender_open and self._receiver_open)

    async def send(self, item: T) -> None:
        n_bytes = item.n_bytes
        if not self._sender_open:
            raise anyio.ClosedResourceError
        if not self._may_send(n_bytes):
            started = time.perf_counter()
            try:
                while not self._may_send(n_bytes):
                    await self._changed.wait()
            finally:
                self.stats.send_blocked_s += time.perf_counter() - started
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._receiver_open:
            raise anyio.BrokenResourceError
        self._items.append(item)
        self.fill_bytes += n_bytes
        stats = self.stats
        stats.n_items += 1
        stats.n_bytes += n_bytes
        stats.peak_bytes = max(stats.peak_bytes, self.fill_bytes)
        stats.peak_items = max(stats.peak_items, len(self._items))
        self._changed.wake()

    async def receive(self) -> T:
        if not self._receiver_open:
            raise anyio.ClosedResourceError
        if not self._may_receive():
            started = time.perf_counter()
            try:
                while not self._may_receive():
                    await self._changed.wait()
            finally:
                self.stats.receive_blocked_s += time.perf_counter() - started
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._items:
            raise anyio.EndOfStream
        item = self._items.popleft()
        self.fill_bytes -= item.n_bytes
        self._changed.wake()
        return item

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def sender(self) -> _End:
        """`async with` this around whoever sends."""
        return _End(self.close_sender)

    def receiver(self) -> _End:
        """`async with` this around whoever receives."""
        return _End(self.close_receiver)

    def close_sender(self) -> None:
        self._sender_open = False
        self._changed.wake()

    def close_receiver(self) -> None:
        """Drop what is left; the sender's next `send` fails."""
        self._receiver_open = False
        self._items.clear()
        self.fill_bytes = 0
        self._changed.wake()


class _End:
    """Closes one end on leaving the block, whatever the reason."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
