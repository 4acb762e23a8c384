"""The receiver's end of one connection that carries a dump: take, write, acknowledge.

::

    reader ── frames, a few MiB ──▶ writer ── threads: write, hash, sync
                                       │
    beat ── every heartbeat_s ──▶ ACK ◀┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from pipeline.flow.channel import Channel
from stages.sink.throttle import TokenBucket
from stages.transport.depot import Depot
from stages.transport.errors import ProtocolError
from stages.transport.limits import Limits
from stages.transport.link import Link, LinkClosedError, LinkLostError
from stages.transport.messages import (
    Ack,
    ChunkFrame,
    Discard,
    Done,
    Frame,
    Hello,
    Ping,
    Same,
    Sync,
    TrailerFrame,
)
from stages.transport.store import UploadStore

_QUEUE_BYTES: Final = 2 << 20
"""Read ahead of the disk; with 8 senders 16 MiB, and as much again in buffers being filled."""
_ACK_BYTES: Final = 256 << 10
"""Taken before they are acknowledged, while more is waiting; a large chunk is at once."""
_FRAME_BYTES: Final = 128


@dataclass(slots=True, frozen=True)
class _Queued:
    frame: Frame | LinkLostError

    @property
    def n_bytes(self) -> int:
        return len(self.frame.data) if isinstance(self.frame, ChunkFrame) else _FRAME_BYTES


class Session:
    """Runs until the dump is committed or given up, or the connection ends."""

    def __init__(
        self,
        link: Link,
        hello: Hello,
        store: UploadStore,
        depot: Depot,
        limits: Limits,
        bucket: TokenBucket,
    ) -> None:
        self._link = link
        self._hello = hello
        self._store = store
        self._depot = depot
        self._limits = limits
        self._bucket = bucket
        self._confirmed = 0
        """Chunks below are what the sender has, as far as this connection knows."""
        self._is_busy = False
        self._is_held_back = False
        self._n_heard = 0
        self._syncing = anyio.Lock()
        self._synced = store.n_written
        self._unacknowledged = 0
        """Bytes of frames since the last ACK."""
        self.is_over = False
        """The upload was committed or discarded."""

    async def run(self) -> None:
        """Converse.

        Raises:
            LinkLostError: the connection broke or is idle; the upload can be resumed.
            RefusedError: what came is not taken.
            ProtocolError: the sender breaks the rules.
        """
        queue: Channel[_Queued] = Channel("queue", _QUEUE_BYTES)
        async with anyio.create_task_group() as group:
            group.start_soon(self._beat)
            group.start_soon(self._read, queue)
            await self._write(queue, group)
            group.cancel_scope.cancel()

    async def _read(self, queue: Channel[_Queued]) -> None:
        while True:
            try:
                item = _Queued(await self._receive())
            except LinkLostError as error:
                # What came before the end is written first.
                await queue.send(_Queued(error))
                return
            self._is_held_back = True
            await self._bucket.take(item.n_bytes)
            self._is_held_back = False
            await queue.send(item)

    async def _receive(self) -> Frame:
        idle_s = self._limits.idle_timeout_s
        try:
            with anyio.fail_after(idle_s):
                return await self._link.receive()
        except TimeoutError:
            raise LinkLostError(f"no whole frame for {idle_s:g} s") from None

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(self._hello.heartbeat_s)
            await self._acknowledge()

    async def _acknowledge(self) -> None:
        self._unacknowledged = 0
        durable = min(self._store.durable, self._confirmed)
        # A line that is slow, but moves, is not a line that stalls.
        moves = self._link.n_received > self._n_heard
        self._n_heard = self._link.n_received
        busy = self._is_busy or self._is_held_back or moves
        await self._link.send(Ack(self._confirmed, durable, busy))

    async def _write(self, queue: Channel[_Queued], group: TaskGroup) -> None:
        while not self.is_over:
            self._is_busy = False
            frame = (await queue.receive()).frame
            self._is_busy = True
            if isinstance(frame, ChunkFrame):
                await self._take(frame)
                self._sync_in_time(group)
            elif isinstance(frame, Same):
                self._store.compare(frame)
                self._confirm(frame.seq)
            elif isinstance(frame, Sync):
                await self._sync()
                self._confirmed = self._store.position
                await self._acknowledge()
            elif isinstance(frame, TrailerFrame):
                await self._finish(frame)
            elif isinstance(frame, Discard):
                self.is_over = await anyio.to_thread.run_sync(self._depot.discard, self._store)
                return
            elif isinstance(frame, LinkClosedError):
                return
            elif isinstance(frame, LinkLostError):
                raise frame
            elif not isinstance(frame, Ping):
                raise ProtocolError(f"{type(frame).__name__} in the middle of an upload")
            if self._unacknowledged >= (_ACK_BYTES if queue.fill_bytes else 1):
                await self._acknowledge()

    async def _take(self, frame: ChunkFrame) -> None:
        if frame.seq < self._store.position:
            self._store.compare(frame.same())
        else:
            await anyio.to_thread.run_sync(self._store.write, frame)
        self._confirm(frame.seq)
        self._unacknowledged += len(frame.data)

    def _confirm(self, seq: int) -> None:
        self._confirmed = seq + 1
        self._unacknowledged += _FRAME_BYTES

    def _sync_in_time(self, group: TaskGroup) -> None:
        """Sync beside the writing, so that the line does not wait for the disk."""
        n_bytes = self._store.n_written - self._synced
        if n_bytes >= self._limits.sync_bytes and not self._syncing.locked():
            self._synced = self._store.n_written
            group.start_soon(self._sync)

    async def _sync(self) -> None:
        async with self._syncing:
            await anyio.to_thread.run_sync(self._store.sync)

    async def _finish(self, frame: TrailerFrame) -> None:
        async with self._syncing:
            await anyio.to_thread.run_sync(self._verify_and_commit, frame)
        self.is_over = True
        await self._link.send(Done(name=self._store.name))

    def _verify_and_commit(self, frame: TrailerFrame) -> None:
        """In one go, so that a cancellation falls before or after it."""
        self._store.verify(frame)
        self._store.commit(frame.manifest)
        self._depot.finished(self._store)
