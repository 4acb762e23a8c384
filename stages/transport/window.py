"""The sender's half of the protocol without I/O: what was taken from the pipeline, in order, until
the receiver has acknowledged it.

::

      acknowledged      first        next_out        added
    ----- gone --------|--- sent ----|--- waiting ---|
                        <---- n_bytes, bounded ----->

A lost connection sets `next_out` back. Chunks that the receiver says it has, but that this process
never sent (another did, before it was killed), are offered as SAME: compared, not sent.
"""

from __future__ import annotations

from collections import deque

from pipeline.flow.items import ChunkKind
from pipeline.memory.sizes import show_count
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.frames import checksum
from stages.transport.messages import Ack, ChunkFrame, Same, Welcome


class SendWindow:
    """Chunks under way; never more than `limit_bytes`, but for one chunk that is larger alone."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self.durable = 0
        self.n_resent = 0
        self.n_skipped = 0
        self._chunks: deque[ChunkFrame] = deque()
        self._first = 0
        self._next_out = 0
        self._full_from: int | None = None
        self._full_upto = 0
        """Chunks from the one to below the other were sent by this process, with their bytes."""
        self._position = 0
        """Chunks below are with the receiver, as it said when it welcomed us."""

    @property
    def added(self) -> int:
        """Chunks taken so far, and the number of the next one."""
        return self._first + len(self._chunks)

    @property
    def acknowledged(self) -> int:
        return self._first

    @property
    def is_empty(self) -> bool:
        return not self._chunks

    def has_room(self, n_bytes: int) -> bool:
        """Whether a chunk of `n_bytes` may be added now."""
        return not self._chunks or self.n_bytes + n_bytes <= self.limit_bytes

    def add(self, kind: ChunkKind, offset: int, data: bytes) -> None:
        """Take a chunk; there must be room."""
        self._chunks.append(ChunkFrame(self.added, kind, offset, data, checksum(data)))
        self.n_bytes += len(data)

    def welcomed(self, welcome: Welcome) -> None:
        """A new connection stands: go on from what the receiver has.

        Raises:
            RefusedError: the receiver lost chunks that are no longer here to be sent again.
        """
        if welcome.position < self._first:
            raise RefusedError(
                f"the receiver has {welcome.position} of the {show_count(self._first, 'chunk')} "
                "that it had acknowledged: it lost data; make the dump again"
            )
        self._position = welcome.position
        if self._full_from is not None and welcome.position > self._full_from:
            # It took some of those, so it had agreed to all comparisons that went before them.
            self._forget(min(welcome.position, self._full_upto))
        self._next_out = self._first

    def next_frame(self) -> ChunkFrame | Same | None:
        """What is to be sent next on this connection, None while there is nothing."""
        index = self._next_out - self._first
        if index >= len(self._chunks):
            return None
        chunk = self._chunks[index]
        self._next_out += 1
        if chunk.seq < self._position:
            self.n_skipped += 1
            return chunk.same()
        if self._full_from is None:
            self._full_from = chunk.seq
        self.n_resent += chunk.seq < self._full_upto
        self._full_upto = max(self._full_upto, self._next_out)
        return chunk

    def acknowledge(self, ack: Ack) -> bool:
        """Forget what the receiver has written; True when that was anything new.

        Raises:
            ProtocolError: it acknowledges what was never offered on this connection.
        """
        if ack.written > self._next_out:
            raise ProtocolError(f"ACK of {ack.written} chunks where {self._next_out} had been sent")
        self.durable = max(self.durable, ack.durable)
        return self._forget(ack.written)

    def _forget(self, written: int) -> bool:
        news = written > self._first
        while self._first < written and self._chunks:
            self.n_bytes -= len(self._chunks.popleft().data)
            self._first += 1
        return news
